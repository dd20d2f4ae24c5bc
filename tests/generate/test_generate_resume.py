"""Nothing lost, nothing twice: the same bytes from any number of processes and after anything that can go wrong."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import generate_worker as worker
import pytest
import torch
from generate_worker import tree

from diffusers_kts import ClassConditionalFlowPipeline, embedded_model
from diffusers_kts.generate.ledger import Ledger
from diffusers_kts.generate.storage import Store
from diffusers_kts.generate.verify import inspect_output

KILLS = 25  # of each format
JOB = {"num_prompts": 21, "batch_size": 2, "num_inference_steps": 4, "traces": True}


@pytest.fixture(scope="module", autouse=True)
def forkserver():
    """The interpreter that runs are forked from, with one thread and this folder on its path."""
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    path = [str(Path(__file__).parents[1]), before["PYTHONPATH"]]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"}
    worker.CONTEXT.set_forkserver_preload(["generate_worker"])
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The output of one undisturbed process."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert worker.run(JOB | {"output": str(folder)}) == 0
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def look(folder, contents=True):
    store = Store(str(folder))
    return inspect_output(store, Ledger(store), contents)


def test_three_processes_give_the_same_bytes(whole, tmp_path):
    job = worker.ranks(JOB | {"output": str(tmp_path / "out")}, 3)
    assert [worker.finish(process) for process in job] == [0, 0, 0]
    assert tree(tmp_path / "out") == tree(whole)


def test_accelerate_launch_gives_the_same_bytes(whole, tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in JOB.items() if name != "traces"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    command += ["-m", "diffusers_kts.generate", f"--output={tmp_path / 'out'}", "--traces", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Complete: 21 samples") == 1  # the main rank alone speaks
    assert tree(tmp_path / "out") == tree(whole)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["imagefolder", "webdataset"])
def test_killed_at_random_moments(format, tmp_path):
    job = {"num_prompts": 96, "batch_size": 2, "num_inference_steps": 2, "format": format, "shard_size": 4}
    assert worker.run(job | {"output": str(tmp_path / "whole")}) == 0
    folder, moments, killed = tmp_path / "out", random.Random(0), 0
    while killed < KILLS:
        drawing = worker.CONTEXT.Event()
        process = worker.start(job | {"output": str(folder)}, drawing)
        while not drawing.wait(0.1) and process.is_alive():
            pass  # one that finds every block drawn only puts the tables together
        time.sleep(moments.uniform(0, 0.12))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        found = look(folder)
        assert not found.damaged
        if found.complete:  # it was faster: once more
            assert tree(folder) == tree(tmp_path / "whole")
            shutil.rmtree(folder)
    assert worker.run(job | {"output": str(folder)}) == 0
    assert tree(folder) == tree(tmp_path / "whole")


def test_a_rank_that_dies_costs_nothing(whole, tmp_path):
    folder = tmp_path / "out"
    first, second = worker.ranks(JOB | {"output": str(folder)}, 2)
    while not list(folder.glob(".kts/blocks/*")):
        time.sleep(0.01)
    second.kill()
    worker.finish(first)  # it draws the other's blocks, too, and then cannot meet it
    assert worker.run(JOB | {"output": str(folder)}) == 0
    assert tree(folder) == tree(whole)


def test_two_runs_at_once_share_the_work(whole, tmp_path):
    runs = [worker.start(JOB | {"output": str(tmp_path / "out")}) for _ in range(2)]
    assert [worker.finish(process) for process in runs] == [0, 0]
    assert tree(tmp_path / "out") == tree(whole)


def test_parts_of_an_array(whole, tmp_path):
    job = JOB | {"output": str(tmp_path / "out")}
    assert worker.run(job | {"shard": "0/2"}) == 3
    assert {int(p.stem) % 2 for p in (tmp_path / "out/.kts/blocks").iterdir()} == {0}
    assert worker.run(job | {"shard": "1/2"}) == 0
    assert tree(tmp_path / "out") == tree(whole)


def test_a_finished_output_is_left_as_it_is(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert worker.run(JOB | {"output": str(copy)}) == 0
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before


def truncate(path):
    path.write_bytes(path.read_bytes()[:20])


def alter(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "name", "words"),
    [
        (truncate, "images/00000/00000005.png", "damaged: block 2 (samples 4 to 5): images/00000/00000005.png has 20 bytes"),
        (Path.unlink, "images/00000/00000005.png", "images/00000/00000005.png is gone"),
        (truncate, "traces/000003.parquet", "damaged: block 3"),
        (truncate, ".kts/blocks/00000002.json", "damaged: block 2 (samples 4 to 5): its record cannot be read"),
        (Path.unlink, ".kts/blocks/00000002.json", "missing: block 2 (samples 4 to 5)"),
        (truncate, "metadata.jsonl", "metadata.jsonl"),
        (Path.unlink, "metadata.jsonl", "metadata.jsonl"),
        (alter, "images/00000/00000005.png", "00000005.png has other content"),
        (alter, "metadata.jsonl", "metadata.jsonl"),
    ],
)
def test_damage_is_named_and_made_good(kts, whole, copy, harm, name, words):
    harm(copy / name)
    code, out, _ = kts("verify", copy)
    assert code == 3 and words in out and "Not complete" in out and (harm is not alter or "and --recheck" in out)
    assert worker.run(JOB | {"output": str(copy), "recheck": harm is alter}) == 0
    assert tree(copy) == tree(whole)
    code, out, _ = kts("verify", copy)
    assert code == 0 and "Complete." in out


def test_what_a_crash_has_begun_is_cleared_away(whole, copy):
    (copy / ".kts/blocks/00000002.json").unlink()
    (copy / ".kts/partial").mkdir(exist_ok=True)
    (copy / ".kts/partial/0123").write_text("half a fi")
    assert worker.run(JOB | {"output": str(copy)}) == 0
    assert tree(copy) == tree(whole)


def small_disk(drawing):
    """No file may become longer than this: what the system answers when a disk or a quota is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("format", ["imagefolder", "webdataset", "parquet"])
def test_a_full_disk_stops_the_run_and_harms_nothing(tmp_path, monkeypatch, format):
    log = tmp_path / "log"
    monkeypatch.setenv("KTS_TEST_LOG", str(log))
    job = JOB | {"format": format, "shard_size": 4, "output": str(tmp_path / "out")}
    assert worker.run(job, env={"KTS_TEST_LOG": str(log)}, spoil=small_disk) == 3
    assert "cannot write to" in log.read_text() and "the same command resumes" in log.read_text()
    found = look(tmp_path / "out")
    assert found.missing and not found.damaged
    assert worker.run(job) == 0
    assert look(tmp_path / "out").complete


def test_a_block_that_diverges_is_named_and_the_others_go_on(tmp_path, kts):
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model("generalizing"))
    with torch.no_grad():
        next(w for n, w in pipe.transformer.named_parameters() if "embedding_table" in n)[3] = torch.nan
    pipe.save_pretrained(tmp_path / "model")
    job = ["--model", tmp_path / "model", "--class-labels", "0,1,2,3,4,5", "--batch-size", 2, "--num-inference-steps", 2]
    for _ in range(2):  # the second run tries the block again
        code, out, err = kts("generate", "--output", "out", *job)
        assert code == 3 and "block 1 (samples 2 to 3): the velocity was not finite for sample 3 from step 0" in out
        assert "1 of 3 blocks are missing, 4 samples" in out and "Traceback" not in err
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 4, 5]
    code, out, _ = kts("verify", "out")
    assert code == 3 and "failed: block 1 (samples 2 to 3)" in out
