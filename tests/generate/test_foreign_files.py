"""Every file that jobs and readers of pictures open, cut, retyped, nested or recoded: one sentence, no traceback."""

import io
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusers_kts import cli

JOB = ["generate", "--class-labels", "0,1,2", "--num-inference-steps", "1", "--batch-size", "2"]
EVALUATE = ["evaluate", "SET", "--reference", "SET", "--metrics", "fd", "--image-size", "8"]
CASES = {  # file -> commands that read it
    "imagefolder/.kts/manifest.json": [["verify", "imagefolder"], [*JOB, "--output", "imagefolder"]],
    "imagefolder/.kts/blocks/00000000.json": [["verify", "imagefolder"], [*JOB, "--output", "imagefolder"]],
    "imagefolder/.kts/assembled.json": [["verify", "imagefolder"], [*JOB, "--output", "imagefolder"]],
    "set/metadata.jsonl": [[name.replace("SET", "set") for name in EVALUATE]],
    "set/images/00000/00000001.png": [[name.replace("SET", "set") for name in EVALUATE]],
    "webdataset/shards/000000.tar": [[name.replace("SET", "webdataset") for name in EVALUATE]],
    "parquet/data/000000.parquet": [[name.replace("SET", "parquet") for name in EVALUATE]],
    "a.npy": [[name.replace("SET", "a.npy") for name in EVALUATE]],
    "imagefolder/config.yaml": [["generate", "--config", "imagefolder/config.yaml", "--dry-run"]],
    "p.jsonl": [["generate", "--prompts", "p.jsonl", "--num-inference-steps", "1", "--dry-run"]],
    "p.csv": [["generate", "--prompts", "p.csv", "--num-inference-steps", "1", "--dry-run"]],
    "p.parquet": [["generate", "--prompts", "p.parquet", "--num-inference-steps", "1", "--dry-run"]],
}


def run(args):
    out, sys.argv = io.StringIO(), ["kts", *args]
    try:
        with redirect_stdout(out), redirect_stderr(out):
            cli.main()
        return 0, out.getvalue()
    except SystemExit as stop:
        return stop.code or 0, out.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    folder = tmp_path_factory.mktemp("whole")
    for format in ("imagefolder", "webdataset", "parquet"):
        assert run([*JOB, "--format", format, "--output", str(folder / format)])[0] == 0
    shutil.copytree(folder / "imagefolder", folder / "set", ignore=shutil.ignore_patterns(".kts"))
    np.save(folder / "a.npy", np.zeros((4, 8, 8), np.uint8))
    (folder / "p.jsonl").write_text('{"prompt": 1, "style": "ink"}\n{"prompt": 2, "style": "oil"}\n')
    (folder / "p.csv").write_text("prompt,style\n1,ink\n2,oil\n")
    pq.write_table(pa.table({"prompt": [1, 2], "style": ["ink", "oil"]}), folder / "p.parquet")
    return folder


@st.composite
def spoiled(draw, data):
    kind = draw(st.sampled_from(["cut", "flip", "swap", "deep", "utf-16", "constant"]))
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == "cut":
        return data[:place]
    if kind == "flip":
        return data[:place] + draw(st.binary(min_size=1, max_size=4)) + data[place + 1 :]
    if kind == "swap":
        old, new = draw(st.permutations([b'"', b"1", b"0", b"{", b"[", b":", b"null", b"s"]))[:2]
        return data.replace(old, new, draw(st.integers(1, 3)))
    if kind == "deep":
        return data[:place] + b"[" * 100_000 + data[place:]
    if kind == "utf-16":
        return data.decode("latin-1").encode("utf-16")
    return draw(st.sampled_from([b"", b"null", b"[]", b"{}", b"3", b'"a"', b"\x00" * 64, b"\xef\xbb\xbf" + data]))


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_file_ends_in_a_sentence(whole, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [])

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(st.data())
    def check(data):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "copy")
        monkeypatch.chdir(tmp_path / "copy")
        path = tmp_path / "copy" / name
        path.write_bytes(data.draw(spoiled(path.read_bytes())))
        pictures = {file: file.read_bytes() for file in (tmp_path / "copy").rglob("*.png")}
        for command in CASES[name]:
            code, said = run(command)  # an exception of any other kind fails the test
            assert code in (0, 2, 3) and "Traceback" not in said
        assert all(file.read_bytes() == content for file, content in pictures.items())

    check()
