"""The folder of an audit: its manifest, and the samples drawn so far, a block at a time, so that a stopped audit resumes."""

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from .. import __version__
from ..errors import brief
from ..files import parse_json, written_together
from ..kpe.trace import KPETrace
from .sampling import Batch
from .settings import AuditSettings

MANIFEST, BLOCKS = "audit.json", "blocks"
CHECKPOINTS = "checkpoints"  # the part of a manifest that may grow
Draw = Callable[[range], Mapping[str, Batch]]


def versions() -> dict[str, str]:
    """Of what the samples depend on."""
    return {
        "diffusers_kts": __version__,
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def begin(settings: AuditSettings, manifest: Mapping[str, Mapping[str, Any]]) -> None:
    """Leave the folder with this audit's manifest, and nothing of another audit.

    Raises:
        ValueError: another audit lies there. OSError: it holds other files, or cannot be written to.
    """
    output, path = settings.output, settings.output / MANIFEST
    held = sorted(entry.name for entry in output.iterdir()) if output.exists() else []
    if held and settings.overwrite:
        shutil.rmtree(output / BLOCKS, ignore_errors=True)
        path.unlink(missing_ok=True)
    elif held:
        if MANIFEST not in held:
            raise FileExistsError(f"{output} is not empty (it holds {held[0]}); add --overwrite, or give another --output.")
        try:
            begun = {part: dict(values) for part, values in parse_json(path.read_bytes(), dict).items()}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({brief(error)}); add --overwrite, or give another --output.") from error
        if difference := _difference(begun, json.loads(json.dumps(manifest))):
            raise ValueError(f"{output} holds an audit {difference}; give the same again, another --output, or --overwrite.")
        if begun.get(CHECKPOINTS) == manifest.get(CHECKPOINTS):
            return
    with written_together(output, [MANIFEST]) as partial:
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _difference(begun: Mapping[str, Mapping[str, Any]], manifest: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What keeps the audit that was begun from being resumed as this one; checkpoints may come in addition."""
    if (CHECKPOINTS in begun) != (CHECKPOINTS in manifest):
        return "of checkpoints" if CHECKPOINTS in begun else "of one model"
    for name, digest in begun.get(CHECKPOINTS, {}).items():
        if (now := manifest[CHECKPOINTS].get(name)) != digest:
            return f"with another checkpoint {name}" if now else f"of {name} too, which is not among these checkpoints"
    for part, values in manifest.items():
        held = begun.get(part, {})
        for name, value in values.items() if part != CHECKPOINTS else ():
            if part == "sha256" and name not in held:
                continue  # an earlier version did not note it
            if (old := held.get(name)) != value:
                return f"with another {name}" if part == "sha256" else f"with {name} {old!r}, not {value!r}"
    return None


def drawn_once(
    folder: Path, blocks: Sequence[range], names: Sequence[str], recorded: Sequence[str], draw: Draw
) -> Iterator[dict[str, Batch]]:
    """The batches of every block by sampler, images in uint8 as a picture file has them; drawn where they are not there yet.

    Args:
        folder (`Path`): of the blocks.
        blocks (`Sequence[range]`): numbers of the samples.
        names (`Sequence[str]`): of the samplers.
        recorded (`Sequence[str]`): those with energies.
        draw (`Callable`): makes a block's batches.
    """
    for leftover in folder.glob(".partial-*"):
        shutil.rmtree(leftover)
    for number, block in enumerate(blocks):
        path = folder / f"{number:06d}"
        if (held := _read(path, names, recorded)) is None:
            _write(path, draw(block))
            held = _read(path, names, recorded)
            assert held is not None
        yield held


def joined(held: Sequence[Mapping[str, Batch]], name: str) -> Batch:
    """All samples of one sampler, images in [0, 1]."""
    images = torch.cat([block[name].images for block in held]).float() / 255
    traces = [trace for block in held if (trace := block[name].trace) is not None]
    return Batch(images, KPETrace.cat(traces) if traces else None)


def _write(path: Path, batches: Mapping[str, Batch]) -> None:
    """A block appears in one move, so that one that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.mkdir()
    pixels = {name: (255 * batch.images.nan_to_num(0)).round().to(torch.uint8).contiguous() for name, batch in batches.items()}
    (partial / "images.safetensors").write_bytes(save(pixels))
    for name, batch in batches.items():
        if batch.trace is not None:
            batch.trace.save(partial / f"{name}.kpe.safetensors")
    shutil.rmtree(path, ignore_errors=True)  # one that could not be read
    partial.replace(path)


def _read(path: Path, names: Sequence[str], recorded: Sequence[str]) -> dict[str, Batch] | None:
    """A block as it was written; None if it is missing or damaged."""
    try:
        images = load_file(path / "images.safetensors")
        traces = {name: KPETrace.load(path / f"{name}.kpe.safetensors") for name in recorded}
        return {name: Batch(images[name], traces.get(name)) for name in names}
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
