"""Runs of ``kts generate`` in processes of their own, forked within milliseconds from an interpreter that has everything
imported. One thread each, as byte for byte the same results need."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from diffusers_kts.generate import run_generate
from diffusers_kts.generate.drawing import Drawing
from diffusers_kts.generate.settings import GenerateSettings

CONTEXT = multiprocessing.get_context("forkserver")


def start(
    settings: dict[str, Any], drawing: Any = None, env: dict[str, str] | None = None, spoil: Any = None
) -> multiprocessing.Process:
    """Begin a run. ``drawing`` (an Event) is set when the first block is about to be drawn; ``spoil`` is called then."""
    process = CONTEXT.Process(target=_run, args=(settings, drawing, env or {}, spoil))
    process.start()
    return process


def run(settings: dict[str, Any], **kwargs: Any) -> int:
    """A run from start to end; its exit code."""
    return finish(start(settings, **kwargs))


def finish(process: multiprocessing.Process) -> int:
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def ranks(settings: dict[str, Any], world: int) -> list[multiprocessing.Process]:
    """The processes of one job, as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [start(settings, env=common | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(world)]


def _run(settings: dict[str, Any], drawing: Any, env: dict[str, str], spoil: Any) -> None:
    os.environ |= env
    torch.set_num_threads(1)
    log = open(Path(os.environ.get("KTS_TEST_LOG", os.devnull)), "a")  # noqa: SIM115 (for the life of the process)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    if drawing is not None or spoil is not None:
        plain = Drawing.run

        def announced(self: Drawing, *args: Any) -> None:
            if spoil is not None:
                spoil(self)
            if drawing is not None:
                drawing.set()
            plain(self, *args)

        Drawing.run = announced
    try:
        result = run_generate(GenerateSettings(**settings))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(2)
    print(*result.lines, sep="\n", flush=True)
    sys.exit(0 if result.complete else 3)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of an output by name, but those that say where and when it was made, or that a kill left half written."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if not name.startswith(".kts/partial/")}
    return {name: path.read_bytes() for name, path in files.items() if name not in ("config.yaml", ".kts/claims")}
