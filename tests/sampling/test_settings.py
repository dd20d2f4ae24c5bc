"""One reader of prompts, one rule of shaping, in every command."""

import csv

import pytest
from tiny_pipelines import tiny_sd3

from diffusers_kts import PRESETS, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.audit import AuditSettings
from diffusers_kts.cli.doctor import DoctorSettings
from diffusers_kts.demo import DemoSettings
from diffusers_kts.features.choice import feature_space
from diffusers_kts.generate import GenerateSettings
from diffusers_kts.pipelines.loading import load_pipeline
from diffusers_kts.sampling.find import load_model
from diffusers_kts.sampling.prompts import Prompt, read_prompts
from diffusers_kts.shaping import SHAPING, Shaping
from diffusers_kts.tune import TuneSettings


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


@pytest.mark.parametrize("settings", [AuditSettings, DemoSettings, GenerateSettings, TuneSettings])
def test_all_commands_read_the_same_prompts(settings, tmp_path):
    path = write(tmp_path / "p.csv", [["prompt", "id", "negative_prompt"], ["a fox", "7", "blurry"], ["a bear", "8", ""]])
    expected = [
        Prompt("a fox", {"id": "7"}, {"negative_prompt": "blurry"}),
        Prompt("a bear", {"id": "8"}, {"negative_prompt": ""}),
    ]
    assert read_prompts(settings(output=tmp_path, prompts=path), None) == expected


@pytest.mark.parametrize("column", ["seed", "guidance_scale", "height", "num_inference_steps"])
def test_a_column_that_is_not_used_is_refused(column, tmp_path):
    path = write(tmp_path / "p.csv", [["prompt", column], ["a fox", ""], ["a bear", "4"]])
    with pytest.raises(ValueError, match=f"line 3 sets {column}"):
        read_prompts(DemoSettings(prompts=path), None)


def test_an_empty_prompt_is_refused_by_its_line(tmp_path):
    path = write(tmp_path / "p.csv", [["prompt", "id"], ["a fox", "1"], [" ", "2"]])
    with pytest.raises(ValueError, match="line 3: the prompt is empty"):
        read_prompts(DemoSettings(prompts=path), None)


def test_the_same_shaping_settings_mean_the_same_everywhere():
    config = KTSFlowMatchScheduler.from_config({}, touchdown=0.7).config
    expected = {name: config[name] for name in SHAPING}
    assert GenerateSettings("out", touchdown=0.7).shaping.to_dict() == expected
    assert Shaping(touchdown=0.7).to_dict() == expected
    assert GenerateSettings("out", preset="off", touchdown=0.7).shaping.to_dict() == PRESETS["touchdown"]
    assert GenerateSettings("out").shaping is None
    assert DoctorSettings(model="m", touchdown=0.7).shaping.to_dict() == expected
    assert DemoSettings(beta_0=0.02).samplers()["kts"].shaping == Shaping(beta_0=0.02)


def test_missing_weights_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_sd3().save_pretrained(tmp_path)
    path = next(tmp_path.glob("transformer/*.safetensors"))
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(ValueError, match=f"1 weights are missing .transformer.{name}|cannot be loaded"):
        load_model(tmp_path, "mine")
    assert load_model(embedded_model(), "memorizing").transformer.dtype == load_pipeline(embedded_model()).dtype


def test_pixels_of_large_images_are_averaged():
    import torch

    space = feature_space("pixels", shape=(3, 256, 256))
    assert space(torch.rand(2, 3, 256, 256)).shape == (2, 3072) and space.name == "pixels averaged to 32x32"
    assert feature_space("pixels", shape=(1, 28, 28)).name == "pixels"
