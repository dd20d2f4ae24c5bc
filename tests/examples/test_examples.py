"""Every example runs as it stands, with a tiny or an embedded model."""

import runpy
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import ModelCard
from nbclient import NotebookClient
from PIL import Image
from tiny_pipelines import TINY, tiny_sd3

EXAMPLES = Path(__file__).parents[2] / "examples"
ELSEWHERE = {"train_fashion_mnist.py": "test_training.py"}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_exercised():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    scripts = [path.name for path in EXAMPLES.glob("*.py")]
    assert len(scripts) >= 6 and all(name in tests for name in scripts)
    assert all((Path(__file__).parent / test).is_file() for test in ELSEWHERE.values())


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_swap_scheduler(run, tmp_path, name):
    TINY[name]().save_pretrained(tmp_path / name)
    more = ["--num-frames", 5] if name == "wan" else []
    out = run("swap_scheduler.py", tmp_path / name, "a fox", "--num-inference-steps", 3, "--size", 32, "--beta-0", 0.05, *more)
    suffix = "gif" if name == "wan" else "png"
    plain, shaped = (Image.open(tmp_path / f"swapped-{kind}.{suffix}").convert("RGB") for kind in ("plain", "shaped"))
    assert plain.size == (32, 32) and plain.tobytes() != shaped.tobytes()
    assert out.count("energy per dimension") == 2


def test_swap_scheduler_of_the_embedded_model(run, tmp_path):
    assert run("swap_scheduler.py", "--num-inference-steps", 3).count("energy per dimension") == 2
    assert Image.open(tmp_path / "swapped-shaped.png").size == (64, 64)


def test_img2img(run, tmp_path):
    tiny_sd3().save_pretrained(tmp_path / "sd3")
    VaeImageProcessor.numpy_to_pil(torch.rand(1, 32, 32, 3).numpy())[0].save(tmp_path / "photo.png")
    out = run("img2img.py", tmp_path / "sd3", tmp_path / "photo.png", "a fox", "--num-inference-steps", 4)
    assert "a late start" in out and "landing" in out and Image.open(tmp_path / "img2img.png").size == (32, 32)


def test_best_of_n(run, tmp_path):
    most, least = (run("best_of_n.py", "--n", 3, "--num-inference-steps", 2, "--keep", keep) for keep in ("most", "least"))
    for line, other in zip(most.splitlines(), least.splitlines(), strict=True):
        assert float(line.split()[-5]) == float(line.split()[-1]) and float(other.split()[-5]) == float(other.split()[-3])
    assert (tmp_path / "best_of_n.png").is_file()


def test_live_plot(run, tmp_path):
    out = run("live_plot.py", "--every", 2, "--num-inference-steps", 4)
    assert out.startswith("step 2: t = 0.") and "step 4: t = 1.00" in out and (tmp_path / "energy.png").is_file()


def test_custom_eta(run, tmp_path):
    plain, waved = (run("custom_eta.py", "--num-inference-steps", 4, "--depth", depth) for depth in (0.0, 0.2))
    assert "eta from 1.000 to 1.000" in plain and "eta from 0.8" in waved and "to 1.000" in waved
    assert plain.split()[-1] != waved.split()[-1]


def test_quickstart_notebook_runs_and_is_kept_executed(tmp_path):
    kept = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) == 2
    fresh = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    NotebookClient(fresh, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()  # raises what a cell raises
    for old, new in zip(kept.cells, fresh.cells, strict=True):
        if old.cell_type == "code" and "count} of" in old.source:
            assert old.outputs[-1]["data"]["text/plain"] == new.outputs[-1]["data"]["text/plain"]


def test_the_audit_of_checkpoints_from_training_to_the_decision(run, kts):
    out = run(
        "audit_checkpoints.py", "--output", "run", "--updates", 4, "--checkpoint-every", 2, "--batch-size", 2, "--rank", 2
    )
    assert out.count("saved run/checkpoint-") == 2
    args = "audit --model emoji --checkpoints run/checkpoint-2 run/checkpoint-4 --training-images run/pictures --output out"
    args += " --prompts run/pictures/metadata.jsonl --num-samples 8 --num-inference-steps 2 --guidance-scale 1 --limit 0.4"
    code, out, err = kts(*args.split(), "--features", "pixels", "--card", "README.md")
    assert code == 0, err
    assert "The last checkpoint below the limit of 0.4 is step 4" in out and "at most 37 % (95 %)" in out
    card = ModelCard.load("README.md")
    assert card.data.eval_results[0].metric_type == "f_mem" and "emoji of a" not in card.text
