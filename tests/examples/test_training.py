"""The training script: stopped and started again it ends where an uninterrupted run ends; what it saves is a pipeline."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_kts import ClassConditionalFlowPipeline, embedded_model

SCRIPT = Path(__file__).parents[2] / "examples" / "train_fashion_mnist.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_fashion_mnist", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(script, monkeypatch, tmp_path):
    with np.load(embedded_model() / "training_images.npz") as shipped:
        np.savez(tmp_path / "data.npz", x_train=shipped["images"], y_train=shipped["labels"])
    small = "--updates 6 --batch-size 4 --hidden-size 32 --num-layers 1 --patch-size 14 --checkpoint-every 2 --log-every 2"

    def run(folder, *more):
        args = ["--data", str(tmp_path / "data.npz"), "--output", str(tmp_path / folder), *small.split(), *map(str, more)]
        monkeypatch.setattr(sys, "argv", ["train", *args])
        script.main()
        return ClassConditionalFlowPipeline.from_pretrained(tmp_path / folder / "pipeline")

    return run


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(train, tmp_path):
    straight = train("straight")
    train("resumed", "--stop-after", 3)
    resumed = train("resumed")
    for a, b in zip(straight.transformer.parameters(), resumed.transformer.parameters(), strict=True):
        assert torch.equal(a, b)
    other = train("other", "--seed", 1)
    assert not torch.equal(straight.transformer.pos_embed.proj.weight, other.transformer.pos_embed.proj.weight)
    lines = (tmp_path / "straight" / "loss.csv").read_text().splitlines()
    assert lines[0].startswith("update,loss") and [line.split(",")[0] for line in lines[1:]] == ["2", "4", "6"]


def test_few_images_are_shipped_with_the_pipeline_and_guidance_needs_dropout(train, tmp_path):
    pipe = train("few", "--num-images", 20, "--label-dropout", 0)
    assert not pipe.config.guidance_trained
    with np.load(tmp_path / "few" / "pipeline" / "training_images.npz") as saved, np.load(tmp_path / "data.npz") as data:
        assert np.array_equal(saved["images"], data["x_train"][:20])
    with pytest.raises(SystemExit, match="--num-images is 100000"):
        train("many", "--num-images", 100_000)
