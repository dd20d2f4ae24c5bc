"""What ``kts generate`` draws, writes and chooses, for every kind of pipeline and format."""

import io
import json

import datasets
import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
import webdataset
from PIL import Image
from tiny_pipelines import TINY, tiny_ltx

from diffusers_kts import KPEMonitorPipeline, KTSFlowMatchScheduler, KTSUniPCMultistepScheduler, embedded_model
from diffusers_kts.generate import run_generate
from diffusers_kts.generate.drawing import Writers
from diffusers_kts.generate.plan import Plan
from diffusers_kts.generate.settings import GenerateSettings
from diffusers_kts.pipelines.loading import load_pipeline
from diffusers_kts.seeding import sample_generators, sample_seed

SHORT = {"max_sequence_length": 32}


def generate(output, **settings):
    result = run_generate(GenerateSettings(output=str(output), **settings))
    assert result.complete
    return result


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a red fox", "id": 7, "rank": 1}, {"prompt": 'a "green" – tree', "id": 8, "rank": None}]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("sd3", "flux", "ltx", "wan"):
        TINY[name]().save_pretrained(folder / name)
    return folder


def test_samples_are_those_of_the_pipeline_itself(tmp_path):
    generate(
        tmp_path / "out", num_prompts=5, batch_size=3, num_inference_steps=4, seed=2, guidance_scale=1.5, preset="balanced"
    )
    rows = rows_of(tmp_path / "out")
    pipe = load_pipeline(embedded_model("generalizing"))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.01, beta_0=0.01)
    drawn = pipe([3, 4], num_inference_steps=4, guidance_scale=1.5, generator=sample_generators(2, [3, 4]))
    for i, image in zip((3, 4), drawn.images, strict=True):
        row = rows[i]
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "out" / row["file_name"])))
        assert row["index"] == i and row["label"] == i and row["generator_seed"] == sample_seed(2, i)
        assert row["path_energy_late"] == float(pipe.scheduler.kpe.path_energy.late[i - 3])
        assert row["per_dim"] == float(pipe.scheduler.kpe.per_dim[i - 3])
        assert (row["alpha_0"], row["touchdown"], row["network_calls"], row["guidance_scale"]) == (0.01, None, 4, 1.5)


def test_prompts_go_their_way(tmp_path, models, prompts):
    settings = {
        "prompts": prompts,
        "images_per_prompt": 2,
        "height": 32,
        "width": 48,
        "num_inference_steps": 3,
        "batch_size": 3,
    }
    settings |= {"negative_prompt": "blurry", "pipeline_args": SHORT, "traces": True}
    generate(tmp_path / "out", model=str(models / "sd3"), **settings)
    rows = rows_of(tmp_path / "out")
    assert [(r["prompt"], r["id"], r["candidate"]) for r in rows[1:3]] == [("a red fox", 7, 1), ('a "green" – tree', 8, 0)]
    assert (rows[0]["prompts_rank"], rows[0]["seed"], rows[2]["prompts_rank"]) == (1, 0, None)
    assert rows[0]["scheduler"] == "FlowMatchEulerDiscreteScheduler" and rows[0]["alpha_0"] is None

    pipe = KPEMonitorPipeline.from_pretrained(models / "sd3")
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        [rows[i]["prompt"] for i in range(3)],
        negative_prompt=["blurry"] * 3,
        height=32,
        width=48,
        num_inference_steps=3,
        generator=sample_generators(0, range(3)),
        **SHORT,
    )
    image = Image.open(tmp_path / "out" / rows[2]["file_name"])
    assert image.size == (48, 32) and np.array_equal(np.asarray(drawn.images[2]), np.asarray(image))
    assert [r["path_energy_total"] for r in rows[:3]] == pipe.kpe.path_energy.total.tolist()
    text = image.text["parameters"].splitlines()
    assert text[:2] == ['a "green" – tree', "Negative prompt: blurry"] and "Steps: 3, " in text[2] and "Seed: 2, " in text[2]
    assert json.loads(image.text["kts"]) == {k: v for k, v in rows[2].items() if k != "file_name"}

    steps = pd.read_parquet(tmp_path / "out" / "traces" / "000000.parquet")
    assert steps["index"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert torch.equal(torch.tensor(steps["power"].to_numpy()).reshape(3, 3), pipe.kpe.power)


def test_readers_of_the_formats_find_the_same_samples(tmp_path, prompts):
    job = {
        "num_prompts": 10,
        "batch_size": 2,
        "num_inference_steps": 2,
        "traces": True,
        "shard_size": 3,
    }  # rounded to 4: whole batches
    for format in ("imagefolder", "webdataset", "parquet"):
        generate(tmp_path / format, format=format, **job)
    rows = rows_of(tmp_path / "imagefolder")
    files = [np.asarray(Image.open(tmp_path / "imagefolder" / row["file_name"])) for row in rows]

    cache = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    folder = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "imagefolder"), **cache)
    assert folder.features["image"].__class__ is datasets.Image
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "parquet/data/*.parquet"), **cache)
    assert len(list((tmp_path / "parquet/data").iterdir())) == 3
    for loaded in (folder, table):
        assert loaded["index"][:] == list(range(10))
        for row, own, image in zip(loaded, rows, files, strict=True):
            assert np.array_equal(np.asarray(row["image"]), image)
            assert {k: row[k] for k in own if k != "file_name"} == {k: v for k, v in own.items() if k != "file_name"}

    shards = sorted(str(path) for path in (tmp_path / "webdataset/shards").iterdir())
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    for sample, own, image in zip(samples, rows, files, strict=True):
        assert sample["__key__"] == f"{own['index']:08d}" and np.array_equal(pixels(sample["png"]), image)
        assert json.loads(sample["json"])["path_energy_total"] == own["path_energy_total"]


def test_videos(tmp_path, models):
    import imageio.v3 as imageio

    (tmp_path / "p.txt").write_text("a wave\n\na fire\n")
    job = {
        "prompts": str(tmp_path / "p.txt"),
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": 2,
        "batch_size": 2,
    }
    job |= {"pipeline_args": SHORT, "model": str(models / "ltx")}
    for video in ("mp4", "frames"):
        generate(tmp_path / video, video=video, **job)
    rows, frames = rows_of(tmp_path / "mp4"), rows_of(tmp_path / "frames")
    pipe = tiny_ltx()
    call = {k: job[k] for k in ("height", "width", "num_frames")} | SHORT
    drawn = pipe(
        ["a wave", "a fire"], num_inference_steps=2, generator=sample_generators(0, range(2)), output_type="np", **call
    ).frames
    assert [(row["index"], row["frame"]) for row in frames] == [(i, f) for i in range(2) for f in range(9)]
    images = np.stack([np.asarray(Image.open(tmp_path / "frames" / row["file_name"])) for row in frames])
    assert np.array_equal(images.reshape(drawn.shape), (drawn * 255).round().astype(np.uint8))
    film = imageio.imread(tmp_path / "mp4" / rows[1]["file_name"])
    assert rows[1]["file_name"] == "videos/00000/00000001.mp4" and film.shape == (9, 32, 32, 3)
    assert np.abs(film.mean((0, 1, 2)) - drawn[1].mean((0, 1, 2)) * 255).max() < 6  # lossy, and still the same film
    for format, name in (("webdataset", "shards/000000.tar"), ("parquet", "data/000000.parquet")):
        generate(tmp_path / format, format=format, **job)
        assert (tmp_path / format / name).stat().st_size > 2000


def test_a_model_keeps_its_own_solver_shaped_or_not(tmp_path, models):
    (tmp_path / "p.txt").write_text("a wave")
    job = {
        "prompts": str(tmp_path / "p.txt"),
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": 3,
        "pipeline_args": SHORT,
    }
    generate(tmp_path / "own", model=str(models / "wan"), **job)
    generate(tmp_path / "kts", model=str(models / "wan"), beta_0=0.02, **job)
    (own,), (kts,) = rows_of(tmp_path / "own"), rows_of(tmp_path / "kts")
    assert own["scheduler"] == "UniPCMultistepScheduler" and own["beta_0"] is None
    assert kts["scheduler"] == "KTSUniPCMultistepScheduler" and (kts["beta_0"], kts["alpha_0"]) == (0.02, 0.01)
    pipe = load_pipeline(models / "wan")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = KTSUniPCMultistepScheduler.from_config(pipe.scheduler.config, beta_0=0.02)
    call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 3} | SHORT
    pipe(["a wave"], generator=sample_generators(0, [0]), **call)
    assert kts["path_energy_total"] == float(pipe.scheduler.kpe.path_energy.total)


@pytest.mark.parametrize("format", ["imagefolder", "webdataset", "parquet"])
def test_any_file_system_takes_the_output(tmp_path, kts, format):
    job = {"num_prompts": 6, "batch_size": 2, "num_inference_steps": 2, "shard_size": 4, "format": format}
    url = f"memory://bucket/{format}"
    generate(url, **job)
    generate(tmp_path / "disk", **job)
    fs = fsspec.filesystem("memory")
    there = {name.removeprefix(f"/bucket/{format}/"): fs.cat_file(name) for name in fs.find(f"/bucket/{format}")}
    disk = {p.relative_to(tmp_path / "disk").as_posix(): p.read_bytes() for p in (tmp_path / "disk").rglob("*") if p.is_file()}
    local = {"config.yaml", ".kts/claims"}
    assert {k: v for k, v in there.items() if k not in local} == {k: v for k, v in disk.items() if k not in local}
    fs.rm_file(next(name for name in there if name.startswith(("images", "shards", "data"))).join([f"/bucket/{format}/", ""]))
    assert kts("verify", url)[0] == 3
    generate(url, **job)
    assert kts("verify", url)[0] == 0


def test_the_best_of_each_prompt_are_kept(tmp_path):
    job = {"num_prompts": 3, "images_per_prompt": 5, "batch_size": 4, "num_inference_steps": 3}
    generate(tmp_path / "all", **job)
    everything = rows_of(tmp_path / "all")
    for lowest in (False, True):
        folder = tmp_path / f"best-{lowest}"
        result = generate(folder, keep_top=2, by="model_energy_late", lowest=lowest, **job)
        rows, candidates = rows_of(folder), [json.loads(x) for x in (folder / "candidates.jsonl").read_text().splitlines()]
        assert result.samples == 6 and len(candidates) == 15 and [c["index"] for c in candidates] == list(range(15))
        energy = {c["index"]: c["model_energy_late"] for c in candidates}
        assert list(energy.values()) == pytest.approx([row["model_energy_late"] for row in everything], rel=1e-4)
        for prompt in range(3):
            order = sorted(range(5 * prompt, 5 * prompt + 5), key=energy.__getitem__, reverse=not lowest)
            assert sorted(order[:2]) == [row["index"] for row in rows if row["prompt_index"] == prompt]
            assert [candidates[i]["rank"] for i in order] == [1, 2, 3, 4, 5]
        assert {c["index"] for c in candidates if c["kept"]} == {row["index"] for row in rows}


def test_screening_walks_the_same_path_with_fewer_calls(tmp_path, models, prompts):
    # one sample a call, so that fewer of them change no bit
    job = {"model": str(models / "flux"), "prompts": prompts, "images_per_prompt": 4, "keep_top": 1, "batch_size": 1}
    job |= {"height": 32, "width": 32, "num_inference_steps": 5, "pipeline_args": SHORT, "preset": "balanced", "traces": True}
    full = generate(tmp_path / "full", **job)
    screened = generate(tmp_path / "screened", screen_steps=2, **job)
    assert (full.calls, full.calls_saved) == (40, 0) and (screened.calls, screened.calls_saved) == (28, 12)
    a, b = (
        {c["index"]: c for c in map(json.loads, (tmp_path / x / "candidates.jsonl").read_text().splitlines())}
        for x in ("full", "screened")
    )
    finished = {i for i, c in b.items() if c["rank"] is not None}
    assert len(finished) == 4 and {i: a[i]["path_energy_total"] for i in finished} == {
        i: b[i]["path_energy_total"] for i in finished
    }
    for prompt in range(2):  # those dropped had the lowest energy so far
        own = sorted((c for c in b.values() if c["prompt_index"] == prompt), key=lambda c: -c["energy_so_far"])
        assert {c["index"] for c in own[:2]} == {i for i in finished if i // 4 == prompt}
    whole = {row["index"]: row for row in rows_of(tmp_path / "full")}
    for row in rows_of(tmp_path / "screened"):
        if row["index"] in whole:
            # the net displacement is not known of those of two parts
            assert row == {name: value for name, value in whole[row["index"]].items() if name != "excess"}
            one, other = (Image.open(tmp_path / folder / row["file_name"]).tobytes() for folder in ("screened", "full"))
            assert one == other
    steps = pd.read_parquet(tmp_path / "screened/traces/000000.parquet")
    assert steps["step"].tolist() == [0, 1, 2, 3, 4] and steps["t"].is_monotonic_increasing and steps["eta"].iloc[0] > 1


def test_compile_and_half_precision_run(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    generate(tmp_path / "out", num_prompts=2, num_inference_steps=2, dtype="bfloat16", compile=True)
    assert compiled == ["DiTTransformer2DModel"] and len(rows_of(tmp_path / "out")) == 2


def test_writers_hold_few_batches_at_a_time():
    import threading

    writers, gate, began = Writers(2), threading.Event(), threading.Event()
    submitted = []

    def feed():
        for i in range(10):
            writers.batch(gate.wait)
            submitted.append(i)
            if i == 2:
                began.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert began.wait(10)
    feeder.join(0.2)
    assert feeder.is_alive() and submitted == [0, 1, 2]  # two threads, one batch ahead
    gate.set()
    feeder.join(10)
    writers.close()
    assert submitted == list(range(10)) and writers.waited > 0


@pytest.mark.parametrize("format", ["imagefolder", "webdataset"])
@pytest.mark.parametrize("keep_top", [None, 2])
@pytest.mark.parametrize(("prompts", "each", "batch"), [(1, 2, 1), (5, 3, 4), (7, 4, 2), (3, 9, 8)])
def test_the_cut_covers_every_sample_once(format, keep_top, prompts, each, batch):
    settings = GenerateSettings("x", images_per_prompt=each, batch_size=batch, format=format, keep_top=keep_top, shard_size=10)
    plan = Plan.of(settings, prompts)
    blocks = [plan.block(i) for i in range(len(plan))]
    assert [i for block in blocks for part in block.batches for i in part] == list(range(prompts * each))
    assert (
        all(len(part) <= batch for block in blocks for part in block.batches)
        and plan.samples(range(len(plan))) == prompts * each
    )
    if keep_top is not None:
        assert all(block.start % each == 0 for block in blocks)
    else:
        assert all(part.start % batch == 0 for block in blocks for part in block.batches)
    for world in (1, 2, 3):
        shares = [list(plan.share((part, 2), rank, world, False)) for part in range(2) for rank in range(world)]
        assert sorted(number for share in shares for number in share) == list(range(len(plan)))
        for rank in range(world):
            assert sorted(plan.share((0, 1), rank, world, True)) == list(range(len(plan)))
