"""The embedded text-to-image models: stock classes, prompts, guidance, and every command."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline

from diffusers_kts import PRESETS, KPECallback, KTSFlowMatchScheduler, diagnose, embedded_model
from diffusers_kts.models import TEXT_TO_IMAGE


@pytest.fixture(scope="module")
def pipe():
    pipe = DiffusionPipeline.from_pretrained(embedded_model("emoji"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt="noto emoji of a cat face", **more):
    arguments = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"} | more
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **arguments).images


@pytest.mark.parametrize("name", TEXT_TO_IMAGE)
def test_it_loads_where_this_package_is_not_installed(name):
    code = (
        "import sys; sys.modules['diffusers_kts'] = None\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(embedded_model(name))!r})\n"
        "print(type(pipe).__name__, pipe('noto emoji of a pear', num_inference_steps=1).images[0].size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "StableDiffusion3Pipeline (64, 64)"


def test_prompt_and_guidance_decide_what_is_drawn(pipe):
    assert isinstance(pipe, StableDiffusion3Pipeline)
    cat, other, guided = draw(pipe), draw(pipe, "twemoji emoji of a red heart"), draw(pipe, guidance_scale=6.0)
    assert cat.shape == (1, 64, 64, 3) and np.abs(cat - other).mean() > 0.05 and np.abs(cat - guided).mean() > 0.005


def test_energy_and_shaping_of_a_guided_text_model(pipe):
    energy = KPECallback(pipe)
    plain = draw(pipe, callback_on_step_end=energy)
    stock = pipe.scheduler
    try:
        pipe.scheduler = KTSFlowMatchScheduler.from_config(stock.config, **PRESETS["off"])
        assert np.array_equal(draw(pipe), plain) and torch.equal(pipe.scheduler.kpe.power, energy.kpe.power)
        pipe.scheduler = KTSFlowMatchScheduler.from_config(stock.config, **PRESETS["landing"])
        assert not np.array_equal(draw(pipe), plain)
        pictures = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
        pictures.set_progress_bar_config(disable=True)
        image = torch.from_numpy(plain).permute(0, 3, 1, 2)
        assert draw(pictures, image=image, strength=0.5).shape == (1, 64, 64, 3)
        assert pipe.scheduler.kpe.late_start
    finally:
        pipe.scheduler = stock


def test_doctor_knows_it(pipe):
    diagnosis = diagnose(pipe)
    assert diagnosis.schedulers[0].use == "KTSFlowMatchScheduler" and diagnosis.can_shape


def test_commands_draw_its_prompts(kts, tmp_path):
    code, _, err = kts(
        "demo", "--model", "emoji-memorizing", "--num-samples", 4, "--num-inference-steps", 2, "--output", "demo"
    )
    assert code == 0, err
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["samplers"]["euler"]["f_mem"]["n"] == 4 and (tmp_path / "demo" / "neighbors.png").exists()
    code, _, err = kts(
        "generate", "--model", "emoji", "--prompt", "noto emoji of a pear", "--images-per-prompt", 2,
        "--num-inference-steps", 2, "--guidance-scale", 3, "--touchdown", 0.7, "--output", "out",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["noto emoji of a pear"] * 2 and rows[0]["per_dim"] > 0
    assert kts("demo", "--model", "emoji", "--prompt", " ", "--output", "no")[0] == 2


JUDGE = """
import numpy as np, torch
from diffusers_kts import embedded_model

with np.load(embedded_model("emoji-memorizing") / "training_images.npz") as file:
    real = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).float() / 255

def close(images, prompts):
    assert all(prompt.startswith("noto emoji of") for prompt in prompts)
    return -torch.cdist(images.flatten(1), real.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
"""


def test_what_it_drew_is_judged_audited_and_tuned(kts, tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    prompts = (embedded_model("emoji-memorizing") / "prompts.txt").read_text().splitlines()[:6]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    few = ("--model", "emoji-memorizing", "--prompts", "p.txt", "--num-inference-steps", 2)
    assert kts("generate", *few, "--output", "out")[0] == 0
    training = embedded_model("emoji-memorizing") / "training_images.npz"
    chosen = ("--scorer", "judge.py:close", "--training-images", training, "--metrics", "score,f-mem,kpe")
    code, out, err = kts("evaluate", "out", *chosen)
    assert code == 0, err
    report = json.loads((tmp_path / "kts-evaluation" / "evaluation.json").read_text())
    score = report["metrics"]["score"]
    assert score["n"] == 6 and score["low"] <= score["value"] <= score["high"] and score["extractor"] == "judge.py:close"
    assert "Spearman of path energy with score" in out
    rows = pq.read_table(tmp_path / "kts-evaluation" / "samples.parquet")
    assert rows["score"].to_pylist() == pytest.approx([-d for d in rows["d1"].to_pylist()], rel=5e-3)

    code, _, err = kts("audit", *few, "--num-samples", 8, "--features", "pixels", "--output", "audit")
    assert code == 0, err
    assert json.loads((tmp_path / "audit" / "report.json").read_text())["samplers"]["euler"]["f_mem"]["n"] == 8
    sizes = ("--num-samples", 32, "--fresh-samples", 20, "--trials", 2, "--batch-size", 32)
    code, _, err = kts("tune", *few, *sizes, "--features", "pixels", "--output", "tuned")
    assert code == 0, err
    assert (tmp_path / "tuned" / "preset.json").exists()


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("judge.py:none", "cannot be loaded"),
        ("judge.py:few", "gave (1,) for 3 images"),
        ("judge.py:broken", "failed on 3 images: no idea"),
        (None, "give --scorer"),
    ],
)
def test_a_bad_judge_is_named_and_nothing_is_written(kts, tmp_path, judge, words):
    (tmp_path / "judge.py").write_text(
        "def few(images, prompts): return images.flatten()[:1]\ndef broken(images, prompts): raise RuntimeError('no idea')\n"
    )
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8, 3), np.uint8))
    code, _, err = kts("evaluate", "images.npy", "--metrics", "score", *(() if judge is None else ("--scorer", judge)))
    assert code == 2 and words in err and not (tmp_path / "kts-evaluation").exists()
