"""The private part of an output when others have written to it, and what ends, holds or misleads a job from outside."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from diffusers_kts.generate.ledger import Claims, Ledger, fcntl
from diffusers_kts.generate.storage import Store
from diffusers_kts.generate.verify import inspect_output

JOB = ["generate", "--num-prompts", 6, "--batch-size", 2, "--num-inference-steps", 2, "--output", "out"]
STRAYS = (".DS_Store", "._00000000.json", ".nfs000000000001", "00000000 (conflicted copy).json", "00000000.json~", "x.json")


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".kts" not in path.parts}


@pytest.mark.parametrize("place", ["blocks", "failed", "partial", ""])
def test_strangers_in_the_private_folder_are_passed_over(kts, tmp_path, place):
    assert kts(*JOB)[0] == 0
    before = files(tmp_path / "out")
    for stray in STRAYS:
        (tmp_path / "out/.kts" / place).mkdir(exist_ok=True)
        (tmp_path / "out/.kts" / place / stray).write_bytes(b"\x00")
    for command in (["verify", "out"], JOB):
        code, out, err = kts(*command)
        assert code == 0 and "Complete" in out, err
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    "broken",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{", b"[" * 100_000, b'{"block": 1}', b'{"rows": 3}', b'"\\ud800"', b"1" * 5000],
)
def test_a_broken_record_costs_its_block_and_a_broken_manifest_is_named(kts, tmp_path, broken):
    assert kts(*JOB)[0] == 0
    before = files(tmp_path / "out")
    (tmp_path / "out/.kts/blocks/00000001.json").write_bytes(broken)
    (tmp_path / "out/.kts/assembled.json").write_bytes(broken)
    code, out, _ = kts("verify", "out")
    assert code == 3 and "damaged: block 1 (samples 2 to 3): its record cannot be read" in out
    assert kts(*JOB)[0] == 0 and kts("verify", "out")[0] == 0 and files(tmp_path / "out") == before
    (tmp_path / "out/.kts/manifest.json").write_bytes(broken)
    for command in (["verify", "out"], JOB):
        code, _, err = kts(*command)
        assert code == 2 and "manifest.json" in err and "Traceback" not in err and files(tmp_path / "out") == before


def test_a_record_of_another_block_is_no_record(kts, tmp_path):
    assert kts(*JOB)[0] == 0
    before = files(tmp_path / "out")
    shutil.copy(tmp_path / "out/.kts/blocks/00000000.json", tmp_path / "out/.kts/blocks/00000001.json")
    assert kts(*JOB)[0] == 0 and files(tmp_path / "out") == before


@pytest.mark.parametrize(
    "change", [{"plan": {}}, {"plan": {"num_samples": "6"}}, {"identity": []}, {"noted": None}, {"version": []}]
)
def test_a_manifest_of_wrong_types_is_named(kts, tmp_path, change):
    assert kts(*JOB)[0] == 0
    path = tmp_path / "out/.kts/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for command in (["verify", "out"], JOB, ["evaluate", "out", "--reference", "out", "--metrics", "fd"]):
        code, _, err = kts(*command)
        assert code == 2 and len(err.splitlines()) == 1 and "out" in err


def test_the_first_changed_prompt_is_named(kts, tmp_path):
    job = ["generate", "--prompts", "p.jsonl", "--num-inference-steps", 2, "--output", "out"]
    (tmp_path / "p.jsonl").write_text('{"prompt": 1, "style": "ink"}\n{"prompt": 2}\n')
    assert kts(*job)[0] == 0
    for text, words in (
        ('{"prompt": 1, "style": "ink"}\n{"prompt": 3}\n', "prompt 2 is [2, {}] there, [3, {}] now"),
        (
            '{"prompt": 1, "style": "oil"}\n{"prompt": 2}\n',
            'prompt 1 is [1, {"style": "ink"}] there, [1, {"style": "oil"}] now',
        ),
        ('{"prompt": 1, "style": "ink"}\n', "prompt 2 is [2, {}] there, none now"),
    ):
        (tmp_path / "p.jsonl").write_text(text)
        code, _, err = kts(*job)
        assert code == 2 and words in err
    (tmp_path / "out/.kts/prompts.jsonl").unlink()  # as in outputs of earlier versions
    assert "the prompts are others" in kts(*job)[2]


def test_after_an_interruption_the_plain_command_is_advised(kts, tmp_path):
    assert kts(*JOB)[0] == 0
    whole = shutil.copytree(tmp_path / "out", tmp_path / "whole")
    (tmp_path / "out/.kts/blocks/00000002.json").unlink()  # what Ctrl-C leaves
    (tmp_path / "out/.kts/assembled.json").unlink()
    (tmp_path / "out/metadata.jsonl").unlink()
    code, out, _ = kts("verify", "out")
    assert code == 3 and "damaged" not in out and "--recheck" not in out
    assert kts(*JOB)[0] == 0 and files(tmp_path / "out").keys() and kts("verify", "out")[0] == 0

    for name, size_shows in (("metadata.jsonl", False), ("metadata.jsonl", True), ("images/00000/00000003.png", False)):
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(whole, tmp_path / "out")
        data = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_bytes(data[:-1] if size_shows else data[:-1] + b"?")
        code, out, _ = kts("verify", "out")
        assert code == 3 and ("--recheck" in out) == (not size_shows)
        assert kts(*JOB, *([] if size_shows else ["--recheck"]))[0] == 0 and kts("verify", "out")[0] == 0


def test_a_block_committed_while_the_files_are_listed_is_not_damaged(kts, tmp_path):
    assert kts(*JOB)[0] == 0
    record, held = tmp_path / "out/.kts/blocks/00000002.json", tmp_path / "held"
    record.rename(held)
    images = sorted((tmp_path / "out/images").rglob("*.png"))[4:]
    stored = {path: path.read_bytes() for path in images}
    for path in images:
        path.unlink()

    class Slow(Store):
        """Another process commits a block as soon as the files have been listed."""

        def sizes(self, folder=""):
            found = super().sizes(folder)
            for path, data in stored.items():
                path.write_bytes(data)
            held.rename(record)
            return found

    store = Slow(str(tmp_path / "out"))
    found = inspect_output(store, Ledger(store))
    assert not found.damaged and found.missing == [2] and record.exists()


def test_a_block_drawn_again_since_it_was_looked_at_is_not_revoked(kts, tmp_path, monkeypatch):
    from diffusers_kts.generate import job

    assert kts(*JOB)[0] == 0
    before = files(tmp_path / "out")
    image = tmp_path / "out/images/00000/00000002.png"
    data = image.read_bytes()
    image.unlink()

    def slow(*args):
        found = inspect_output(*args)
        image.write_bytes(data)  # by another process
        return found

    monkeypatch.setattr(job, "inspect_output", slow)
    removed = []
    monkeypatch.setattr(Ledger, "revoke", lambda self, block: removed.append(block))
    assert kts(*JOB)[0] == 0 and not removed and files(tmp_path / "out") == before


def test_a_file_system_without_locks_is_drawn_to_all_the_same(kts, tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    code, out, err = kts(*JOB)
    assert code == 0 and "Complete: 6 samples" in out, err
    claims = Claims(Store(str(tmp_path / "out")))
    claims.open()
    assert not claims.shared and claims.take(0)  # each rank keeps to its own share


@pytest.mark.parametrize(
    "setting", [{"ACCELERATE_USE_DEEPSPEED": "true"}, {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_MIXED_PRECISION": "fp8"}]
)
def test_a_training_configuration_of_accelerate_does_not_matter(kts, tmp_path, monkeypatch, setting):
    from accelerate.state import AcceleratorState

    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(True)
    try:
        code, out, err = kts(*JOB)
    finally:
        AcceleratorState._reset_state(True)
    assert code == 0 and "Complete: 6 samples" in out, err


def test_a_rank_ends_with_its_launcher(tmp_path):
    rank = (
        "import pathlib, time; from diffusers_kts.generate import orphan; orphan.LOOK_EVERY = .05; orphan.end_with_launcher();"
        f"pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(60)"
    )
    launcher = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {rank!r}]).pid, flush=True); input()"
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "none"}
    process = subprocess.Popen(
        [sys.executable, "-c", launcher],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    number = int(process.stdout.readline())
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    os.kill(number, 0)  # it runs
    process.kill()
    assert b"the launcher has ended" in process.stderr.read()  # which the rank holds open until it ends
    process.wait()
