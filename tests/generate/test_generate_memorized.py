"""``kts generate --detector``: what becomes of flagged samples, and which runs a detector is refused for."""

import dataclasses
import itertools
import json

import generate_worker as worker
import numpy as np
import pandas as pd
import pytest
import torch
from generate_worker import tree
from PIL import Image
from test_generate import generate, rows_of
from test_generate_resume import forkserver  # noqa: F401

from diffusers_kts import PRESETS, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.memorization import fit_detector
from diffusers_kts.pipelines.loading import load_pipeline
from diffusers_kts.sampling.find import fingerprint
from diffusers_kts.sampling.prompts import Prompt
from diffusers_kts.sampling.sampler import Sampler
from diffusers_kts.sampling.settings import SamplingSettings
from diffusers_kts.seeding import sample_seed

STEPS = 8
JOB = {"num_prompts": 12, "batch_size": 4, "num_inference_steps": STEPS, "seed": 3}
TOUCHDOWN = 5 * 0.999 / 7  # the first flow time of the grid that is not before .6


@pytest.fixture(scope="module")
def detector():
    """Fitted to samples of the embedded model that count as memorized where they used less energy than most."""
    folder = embedded_model("generalizing")
    sampler = Sampler(folder, SamplingSettings(model="generalizing", num_inference_steps=STEPS), torch.device("cpu"))
    sampler.pipe.record_turn = True
    trace = sampler.draw(range(100, 180), [Prompt(i % 10) for i in range(80)], decode=False).trace
    hits = trace.per_dim < trace.per_dim.median()
    return fit_detector(trace, hits, [0] * 80, {"model": fingerprint(folder), "guidance_scale": 1.0})


@pytest.fixture(scope="module")
def job(detector, tmp_path_factory):
    """The settings of a job with the detector."""
    file = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    detector.save(file)
    return JOB | {"detector": str(file)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "out"
    generate(folder, **JOB)
    return images(folder)


@pytest.fixture(scope="module")
def redrawn(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("redrawn") / "out"
    assert worker.run(job | {"output": str(folder), "on_memorized": "redraw"}) == 0
    return folder


def images(folder):
    return [np.asarray(Image.open(folder / row["file_name"])) for row in rows_of(folder)]


def near(one, other):
    """Equal but for last bits, which batches and threads change."""
    return np.abs(one.astype(int) - other).max() <= 1


def test_flag_names_samples_and_changes_none(tmp_path, job, plain, detector):
    generate(tmp_path / "out", **job, on_memorized="flag")
    rows = rows_of(tmp_path / "out")
    assert all(map(np.array_equal, images(tmp_path / "out"), plain))
    assert 0 < sum(row["flagged"] for row in rows) < len(rows) and "redraws" not in rows[0]
    assert [row["flagged"] for row in rows] == [row["memorization_probability"] >= 0.5 for row in rows]
    generate(tmp_path / "strict", **job, on_memorized="flag", detector_threshold=0.9, format="parquet")
    table = pd.read_parquet(tmp_path / "strict" / "data")
    assert table["memorization_probability"].tolist() == [row["memorization_probability"] for row in rows]
    assert table["flagged"].tolist() == [row["memorization_probability"] >= 0.9 for row in rows]


def test_touchdown_draws_flagged_samples_as_a_touchdown_of_all_would(tmp_path, job, plain):
    generate(tmp_path / "out", **job, on_memorized="touchdown")
    generate(tmp_path / "all", **JOB, preset="off", touchdown=TOUCHDOWN)
    rows, down = rows_of(tmp_path / "out"), images(tmp_path / "all")
    assert 0 < sum(row["flagged"] for row in rows) < len(rows)
    for row, image, one, other in zip(rows, images(tmp_path / "out"), down, plain, strict=True):
        assert np.array_equal(image, one if row["flagged"] else other) and not np.array_equal(one, other)
        assert row["scheduler"] == "KTSDetectorFlowMatchScheduler" and row["network_calls"] == STEPS


def test_redraws_take_the_next_noise_of_the_number(redrawn, plain):
    rows, pipe = rows_of(redrawn), load_pipeline(embedded_model("generalizing"))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["off"])
    assert {0, 1} < {row["redraws"] for row in rows} and not all(row["redraws"] for row in rows)
    calls = json.loads((redrawn / ".kts" / "assembled.json").read_text())["sums"]["calls"]
    assert calls == STEPS * (12 + sum(row["redraws"] for row in rows))
    for i, (row, image) in enumerate(zip(rows, images(redrawn), strict=True)):
        seed = sample_seed(3, i, row["redraws"])
        assert row["generator_seed"] == seed and row["flagged"] == (row["memorization_probability"] >= 0.5)
        assert not row["flagged"] or row["redraws"] == 4
        if not row["redraws"]:
            assert near(image, plain[i])
        alone = pipe(row["label"], num_inference_steps=STEPS, generator=torch.Generator().manual_seed(seed)).images[0]
        assert near(image, np.asarray(alone))


def test_a_sample_that_is_always_flagged_is_kept_and_named(tmp_path, job):
    generate(tmp_path / "out", **job | {"num_prompts": 2}, on_memorized="redraw", detector_threshold=1e-6, max_redraws=2)
    assert [(row["redraws"], row["flagged"]) for row in rows_of(tmp_path / "out")] == [(2, True)] * 2


def test_redraws_do_not_depend_on_order_ranks_restarts_or_batches(tmp_path, job, redrawn):
    settings = job | {"on_memorized": "redraw"}
    assert worker.run(settings | {"output": str(tmp_path / "parts"), "shard": "2/3"}) == 3
    again = worker.ranks(settings | {"output": str(tmp_path / "parts")}, 2)
    assert [worker.finish(process) for process in again] == [0, 0]
    assert tree(tmp_path / "parts") == tree(redrawn)
    generate(tmp_path / "batches", **settings | {"batch_size": 5})
    for one, other in zip(rows_of(tmp_path / "batches"), rows_of(redrawn), strict=True):
        assert [one[name] for name in ("redraws", "flagged", "generator_seed")] == [
            other[name] for name in ("redraws", "flagged", "generator_seed")
        ]
        assert one["memorization_probability"] == pytest.approx(other["memorization_probability"], abs=1e-4)
    assert all(map(near, images(tmp_path / "batches"), images(redrawn)))


def test_no_two_samples_and_redraws_share_their_noise():
    seeds = [sample_seed(0, i, n) for n in range(101) for i in (0, 1, 999, 16_000_000)]
    assert len(set(seeds)) == len(seeds)
    first = sorted(sample_seed(0, 0, n) for n in range(101))
    assert min(b - a for a, b in itertools.pairwise(first)) > 16_000_000


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--on-memorized", "flag"], "on_memorized needs detector; give the detector.safetensors"),
        (["--max-redraws", "2"], "max_redraws needs detector"),
        (["--detector", "d"], "detector needs on_memorized; choose one of redraw, touchdown or flag"),
        (["--detector", "d", "--on-memorized", "stop"], "choose one of redraw, touchdown or flag"),
        (["--detector", "d", "--on-memorized", "flag", "--max-redraws", "2"], "max_redraws needs on_memorized redraw"),
        (["--detector", "d", "--on-memorized", "flag", "--keep-top", "1"], "detector and keep_top are both given"),
        (["--detector", "none", "--on-memorized", "flag"], "none does not exist; give the detector.safetensors"),
        (["--detector", "damaged", "--on-memorized", "flag"], "damaged is damaged or no detector"),
        (["--detector", "d", "--on-memorized", "flag", "--detector-threshold", "2"], "detector_threshold is 2.0; give"),
        (["--detector", "d", "--on-memorized", "touchdown", "--detect-at", "0.55"], "or 1, not 0.55"),
        (["--detector", "d", "--on-memorized", "flag", "--preset", "balanced"], "alpha_0 0, this run has 0.01"),
        (["--detector", "d", "--on-memorized", "flag", "--num-inference-steps", "5"], "schedule of 8 steps"),
        (["--detector", "d", "--on-memorized", "redraw", "--guidance-scale", "2"], "guidance_scale 1.0, this run has 2.0"),
        (["--detector", "d", "--on-memorized", "touchdown", "--model", "memorizing"], "fitted with model"),
        (["--detector", "small", "--on-memorized", "flag"], "fitted with d 9, this run has 784"),
        (["--detector", "d", "--on-memorized", "flag", "--pipeline-args", "{sigmas: [1, 0.5]}"], "this run has 2 steps"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(kts, tmp_path, detector, args, words):
    detector.save(tmp_path / "d")
    dataclasses.replace(detector, about=detector.about | {"d": 9}).save(tmp_path / "small")
    (tmp_path / "damaged").write_bytes((tmp_path / "d").read_bytes()[:-9])
    before = sorted(tmp_path.rglob("*"))
    code, _, err = kts("generate", "--output", "out", "--num-prompts", 2, "--num-inference-steps", STEPS, *args)
    assert code == 2 and words in " ".join(err.replace("│", " ").split()) and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_another_detector_is_another_output(tmp_path, job, detector, kts):
    generate(tmp_path / "out", **job | {"num_prompts": 2}, on_memorized="flag")
    about = json.loads((tmp_path / "out" / ".kts" / "manifest.json").read_text())["identity"]
    assert about["detector"] == detector.digest
    dataclasses.replace(detector, bias=detector.bias + 1).save(tmp_path / "other")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (job | {"num_prompts": 2}).items()]
    code, _, err = kts("generate", "--output=out", *options, "--on-memorized=flag", f"--detector={tmp_path / 'other'}")
    assert code == 2 and "detector is" in " ".join(err.split())
