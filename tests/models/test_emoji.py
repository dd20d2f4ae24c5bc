"""The embedded text-to-image models: stock classes, prompts, guidance, and every command."""

import json
import subprocess
import sys

import numpy as np
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
