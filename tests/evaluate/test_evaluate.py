"""``kts evaluate``: its numbers are those of the libraries it calls; what is missing is said before any work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from tiny_yardsticks import save_clip, save_dinov2
from transformers import AutoTokenizer, BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel, Dinov2Model

from diffusers_kts import embedded_model
from diffusers_kts.evaluate.job import REPORT, SAMPLES, evaluate
from diffusers_kts.evaluate.reference_set import Provenance, ReferenceSet, save_statistics
from diffusers_kts.features.frechet import FeatureStatistics, frechet_distance, precision_recall
from diffusers_kts.generate import run_generate
from diffusers_kts.generate.settings import GenerateSettings
from diffusers_kts.images.training_images import load_images
from diffusers_kts.memorization.fraction import measure_memorization

TRAINING = embedded_model() / "training_images.npz"
ROOT = Path(__file__).parents[2]
FIDELITY = ROOT / ".fidelity"  # torchvision and torch-fidelity, in a folder of their own


def measured(*args, **settings):
    return evaluate(*args, **{"show_progress": False, "device": "cpu"} | settings)


def pooled(images):
    """A feature network for the tests: 7x7 means."""
    return torch.nn.functional.avg_pool2d(images, images.shape[-1] // 4)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """An output of kts generate, of 24 samples, many of them copies of training images."""
    folder = tmp_path_factory.mktemp("drawn") / "out"
    assert run_generate(
        GenerateSettings(output=str(folder), model="memorizing", num_prompts=24, num_inference_steps=12)
    ).complete
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_clip(folder / "clip")
    save_dinov2(folder / "dinov2")
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "real.npy"
    with np.load(TRAINING) as archive:
        np.save(path, archive["images"][:40])
    return path


@pytest.fixture(scope="module")
def inputs(drawn, real, checkpoints, tmp_path_factory):
    """A folder with all kinds of input, good and bad."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, path in {"out": drawn, "real.npy": real, "clip": checkpoints / "clip", "dinov2": checkpoints / "dinov2"}.items():
        (folder / name).symlink_to(path)
    for name in ("cut", "no weights"):
        shutil.copytree(checkpoints / "dinov2", folder / name)
    weights = load_file(folder / "cut" / "model.safetensors")
    weights.popitem()
    save_file(weights, folder / "cut" / "model.safetensors", {"format": "pt"})
    (folder / "no weights" / "model.safetensors").unlink()
    for name, shape in (("few", (3, 28, 28)), ("small", (9, 14, 14)), ("large", (9, 80, 80)), ("same", (5, 28, 28))):
        np.save(folder / f"{name}.npy", np.zeros(shape, np.uint8))
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    np.savez(folder / "stats.npz", **statistics)
    np.savez(folder / "adm.npz", np.zeros((6, 8, 8, 3), np.uint8), **statistics)
    np.savez(folder / "wrong.npz", mu=np.zeros(4), sigma=np.eye(4))
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def images_of(folder):
    pictures = [np.asarray(Image.open(folder / row["file_name"])) for row in rows_of(folder)]
    return torch.from_numpy(np.stack(pictures))[:, None].float() / 255


def test_the_report_is_what_the_parts_measure(drawn, real, tmp_path):
    found = measured(drawn, real, training_images=TRAINING, features="test_evaluate:pooled", output=tmp_path / "out")
    report, table = json.loads((tmp_path / "out" / REPORT).read_text()), pd.read_parquet(tmp_path / "out" / SAMPLES)
    assert report == json.loads(json.dumps(found.report)) and found.files == [
        tmp_path / "out" / REPORT,
        tmp_path / "out" / SAMPLES,
    ]
    images, reference = images_of(drawn), load_images(real, (1, 28, 28))
    memory = measure_memorization(images, load_images(TRAINING, (1, 28, 28)))
    metrics = found.metrics
    ours, theirs = pooled(images).flatten(1), pooled(reference).flatten(1)
    assert metrics["fd"].value == pytest.approx(frechet_distance(ours, theirs), rel=1e-6)
    shares = precision_recall(ours, theirs)
    assert (metrics["fd-precision"].value, metrics["fd-recall"].value) == (shares.precision, shares.recall)
    assert metrics["f-mem"].details["count"] == memory.f_mem.count > 0 and metrics["f-mem"].low == memory.f_mem.low
    assert metrics["fd"].extractor == "test_evaluate:pooled" and metrics["fd"].reference["n"] == 40

    rows = pd.DataFrame(rows_of(drawn))
    assert metrics["kpe"].value == pytest.approx(rows["per_dim"].mean()) and metrics["kpe"].n == 24
    assert metrics["kpe"].details["path_energy_total"]["median"] == pytest.approx(rows["path_energy_total"].median())
    assert table["name"].tolist() == rows["file_name"].tolist()
    assert np.array_equal(table["d1"], memory.distances[:, 0]) and np.array_equal(
        table["training_image_2"], memory.indices[:, 1]
    )
    expected = spearmanr(rows["path_energy_total"], memory.distances[:, 0] / memory.distances[:, 1]).statistic
    assert found.correlations["d1/d2"].rho == pytest.approx(expected)
    training = load_images(TRAINING, (1, 28, 28)).flatten(1).double()
    apart = torch.cdist(images.flatten(1).double(), training).sort(1).values
    assert table["support_knn"].tolist() == pytest.approx((-apart[:, 9].log()).tolist(), rel=1e-5)
    width = torch.cdist(training[:500], training).sort(1).values[:, 10].median()
    kernels = torch.exp(-torch.cdist(images.flatten(1).double(), training).square() / (2 * width**2)).mean(1)
    assert table["support_kde"].tolist() == pytest.approx(kernels.log().tolist(), rel=1e-3)
    assert found.correlations["support_knn"].rho == pytest.approx(
        spearmanr(rows["path_energy_total"], apart[:, 9]).statistic * -1
    )
    thirds = pd.qcut(rows["path_energy_total"], 3, labels=["low", "middle", "high"])
    assert table["energy_group"].tolist() == thirds.tolist()
    means = table.groupby("energy_group")["support_knn"].mean().to_dict()
    assert report["by_energy_group"]["support_knn"] == pytest.approx(means)
    for lacking in ("torch-fidelity", "facebook/dinov2-large", "openai/clip-vit-large-patch14"):
        assert any(lacking in note for note in found.notes)


def test_nothing_depends_on_batches_or_on_whether_statistics_were_saved(drawn, real, tmp_path):
    settings = {"metrics": ["fd"], "features": "test_evaluate:pooled"}
    whole = measured(drawn, real, statistics=tmp_path / "real.npz", **settings)
    parts = measured(drawn, real, batch_size=5, **settings)
    saved = measured(drawn, tmp_path / "real.npz", **settings)
    assert whole.metrics == parts.metrics and saved.metrics["fd"].value == whole.metrics["fd"].value
    assert set(saved.metrics) == {"fd"} and saved.metrics["fd"].reference["n"] == 40
    with pytest.raises(ValueError, match="were taken with test_evaluate:pooled, not pixels"):
        measured(drawn, tmp_path / "real.npz", metrics=["fd"])


def test_clip_score_and_dinov2_are_those_of_transformers(drawn, real, checkpoints, tmp_path):
    names = {"clip": str(checkpoints / "clip"), "dinov2": str(checkpoints / "dinov2")}
    found = measured(drawn, real, metrics=["fd-dinov2", "clip-score"], batch_size=7, **names)
    processor, tokenizer = (kind.from_pretrained(checkpoints / "clip") for kind in (CLIPImageProcessorPil, AutoTokenizer))
    model = CLIPModel.from_pretrained(checkpoints / "clip").eval()
    pictures = [Image.open(drawn / row["file_name"]).convert("RGB") for row in rows_of(drawn)]
    text = tokenizer(
        [f"a photo of a {row['class_name']}" for row in rows_of(drawn)], padding=True, truncation=True, max_length=12
    )
    with torch.no_grad():
        inputs = {name: torch.tensor(values) for name, values in text.items()}
        seen = processor(pictures, return_tensors="pt")["pixel_values"]
        cosines = model(**inputs, pixel_values=seen).logits_per_image / model.logit_scale.exp()
        own = BitImageProcessorPil.from_pretrained(checkpoints / "dinov2")
        vision = Dinov2Model.from_pretrained(checkpoints / "dinov2").eval()
        sets = [images_of(drawn), load_images(real, (1, 28, 28))]
        features = []
        for images in sets:
            as_pictures = [Image.fromarray(image).convert("RGB") for image in (images[:, 0] * 255).round().byte().numpy()]
            given = own(as_pictures, return_tensors="pt")["pixel_values"]
            features.append(vision(given).last_hidden_state[:, 0])
    expected = 100 * cosines.diagonal().clamp(min=0)
    classes = np.array([row["class_name"] for row in rows_of(drawn)])
    others = np.where(classes[:, None] == classes, -np.inf, cosines).max(1)
    assert len(set(classes)) > 1
    assert found.samples["clip_margin"] == pytest.approx(100 * (cosines.diagonal().numpy() - others), abs=1e-4)
    assert found.metrics["clip-margin"].value == pytest.approx(np.mean(found.samples["clip_margin"]), abs=1e-6)
    assert expected.max() > 0 and found.samples["clip_score"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.metrics["clip-score"].value == pytest.approx(float(expected.mean()), abs=1e-4)
    assert found.metrics["fd-dinov2"].value == pytest.approx(frechet_distance(*features), rel=1e-4)
    for name in ("clip-score", "fd-dinov2"):
        assert len(found.metrics[name].sha256) == 64 and "crop" in found.metrics[name].resize
    energies = [row["path_energy_total"] for row in rows_of(drawn)]
    assert found.correlations["clip_score"].rho == pytest.approx(spearmanr(energies, found.samples["clip_score"]).statistic)
    assert any("a photo of a" in note for note in found.notes)


def test_prompts_are_those_of_the_metadata(checkpoints, tmp_path):
    save = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), np.uint8)
    for i, pixels in enumerate(save):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    prompts = ["a fox", "a red fox under a tree that has lost its leaves", "", "x", "y"]

    def score(prompts):
        rows = [{"file_name": f"{4 - i}.png", "prompt": prompt} for i, prompt in enumerate(prompts)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return measured(tmp_path, metrics=["clip-score"], clip=str(checkpoints / "clip"))

    with pytest.raises(ValueError, match=r"clip-score cannot be measured: 1 of 5 images have no prompt, such as 2\.png"):
        score(prompts)
    prompts[2] = "z"
    found = score(prompts)
    assert found.samples["name"][0] == "4.png" and found.samples["prompt"] == prompts and not found.correlations
    assert len(set(found.samples["clip_score"])) > 1
    found = score(["x"] * 5)
    assert "clip_margin" not in found.samples and "clip-margin" not in found.metrics


def test_reference_files_of_other_programs(inputs, tmp_path):
    adm, other = ReferenceSet.open(inputs / "adm.npz"), ReferenceSet.open(inputs / "stats.npz")
    assert len(adm.images) == 6 and adm.images.shape == (3, 8, 8) and other.images is None
    for reference in (adm, other):
        statistics, said = reference.statistics["inception"]
        assert statistics.mean.shape == (2048,) and said == Provenance()
    found = FeatureStatistics(np.arange(3, dtype=np.float32), np.eye(3))
    said = Provenance("net", "abc", 5, "none")
    save_statistics(tmp_path / "ours.npz", {"dinov2": (found, said)})
    read, read_said = ReferenceSet.open(tmp_path / "ours.npz").statistics["dinov2"]
    assert read.mean.dtype == np.float32 and np.array_equal(read.mean, found.mean) and read_said == said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "there is nothing at nowhere"),
        (["out", "--reference", "nowhere"], "there is nothing at nowhere"),
        (["out", "--metrics", "fid,speed"], "'speed'; choose"),
        (["out", "--metrics", "fid"], "give --reference"),
        (["out", "--metrics", "fid", "--reference", "real.npy"], "weights-inception-2015-12-05-6726825d.pth"),
        (["out", "--metrics", "kid", "--reference", "real.npy"], "--kid-subset-size 24"),
        (["few.npy", "--metrics", "is"], "at least 20"),
        (["few.npy", "--metrics", "fd", "--reference", "real.npy"], "there are 3 images in few.npy; it takes at least 4"),
        (["out", "--metrics", "fd", "--reference", "few.npy"], "there are 3 reference images in few.npy"),
        (["out", "--metrics", "fd", "--reference", "small.npy"], "have 784 features in pixels, the reference 196"),
        (["large.npy", "--metrics", "fd", "--reference", "large.npy"], "too many for a covariance"),
        (["out", "--metrics", "precision-recall", "--reference", "stats.npz"], "give the images"),
        (["out", "--reference", "wrong.npz"], "with d = 2048"),
        (["real.npy", "--metrics", "kpe"], "has no energies"),
        (["real.npy", "--metrics", "clip-score"], "has no prompts"),
        (["real.npy", "--metrics", "f-mem"], "--training-images"),
        (["real.npy", "--metrics", "f-mem", "--training-images", "same.npy"], "1 are distinct"),
        (["real.npy"], "cannot be measured"),
        (["out", "--metrics", "clip-score"], "hf download openai/clip-vit-large-patch14"),
        (["out", "--metrics", "clip-score", "--clip", "dinov2"], "misses tokenizer_config.json"),
        (["out", "--metrics", "fd-dinov2", "--reference", "real.npy", "--dinov2", "clip"], "'clip', not 'dinov2'"),
        (["out", "--metrics", "fd-dinov2", "--reference", "real.npy", "--dinov2", "cut"], "such as "),
        (["out", "--metrics", "fd-dinov2", "--reference", "real.npy", "--dinov2", "no weights"], "misses model*.safetensors"),
        (["out", "--clip", "dinov2"], "misses tokenizer_config.json"),
        (["out", "--metrics", "auto,fid"], "choose auto alone"),
        (["out", "--batch-size", "0"], "batch_size is 0"),
        (["out", "--kid-subset-size", "1"], "kid_subset_size is 1"),
        (["out", "--statistics", "stats.txt"], "ends in .npz"),
        (["out", "--metrics", "kpe", "--statistics", "new.npz"], "no statistics to save"),
        (["out", "--metrics", "kpe", "--output", "few.npy"], "is a file"),
        (["out", "--metrics", "kpe"], "evaluation.json exists; add --overwrite"),
        (
            ["out", "--reference", "small.npy"],
            "nothing can be measured against small.npy.",
        ),
        (["out", "--reference", "stats.npz", "--statistics", "stats.npz"], "stats.npz is to be measured and to be written"),
        (
            ["out", "--metrics", "fd", "--reference", "real.npy", "--statistics", "adm.npz", "--output", "new"],
            "adm.npz exists; add --overwrite",
        ),
        (["out", "--metrics", "kpe", "--output", "/proc/no"], "give another folder with --output"),
        (["out", "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_loses_nothing(kts, inputs, tmp_path, args, words):
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "kts-evaluation").mkdir()
    (tmp_path / "kts-evaluation" / REPORT).write_text("of an earlier run")
    code, _, err = kts("evaluate", *args)
    assert code == 2 and words in err and "Traceback" not in err
    assert [path.read_text() for path in (tmp_path / "kts-evaluation").iterdir()] == ["of an earlier run"]


def test_an_earlier_evaluation_is_replaced_on_request_only(kts, inputs, tmp_path):
    arguments = ["evaluate", inputs / "out", "--metrics", "fd", "--reference", inputs / "real.npy", "--statistics", "s.npz"]
    assert kts(*arguments)[0] == 0
    before = (tmp_path / "kts-evaluation" / REPORT).read_bytes()
    assert kts(*arguments)[0] == 2 and (tmp_path / "kts-evaluation" / REPORT).read_bytes() == before
    assert kts(*arguments, "--overwrite")[0] == 0


def test_a_picture_that_cannot_be_decoded_loses_nothing(kts, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    (tmp_path / "set").mkdir()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "set" / f"{i}.png")
    arguments = ["evaluate", "set", "--reference", "set", "--metrics", "fd"]
    assert kts(*arguments)[0] == 0
    before = (tmp_path / "kts-evaluation" / REPORT).read_bytes()
    data = (tmp_path / "set" / "5.png").read_bytes()
    (tmp_path / "set" / "5.png").write_bytes(data[:-30])
    code, _, err = kts(*arguments)
    assert code == 2 and "5.png" in err and (tmp_path / "kts-evaluation" / REPORT).read_bytes() == before


def test_numbers_are_those_of_torch_fidelitys_own_command(tmp_path):
    if not FIDELITY.is_dir():
        remedy = "pip install --no-deps -c constraints.txt --target .fidelity torchvision torch-fidelity"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"there is no folder .fidelity: {remedy}")
    rng, rows = np.random.default_rng(0), []
    for folder, count in (("drawn", 20), ("real", 10)):
        (tmp_path / folder).mkdir()
        for i in range(count):  # dark blots in both sets, and in each another kind of bright ones
            side = 7 if i % 2 == 0 else 32 if folder == "real" else 3
            blots = rng.integers(0, 256, (side, side, 3), np.uint8) // (1 if i % 2 else 4)
            Image.fromarray(blots).resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / folder / f"{i:02d}.png")
            rows.append({"file_name": f"{i:02d}.png", "path_energy_total": 100.0 + i, "per_dim": 1.0 + i})
    (tmp_path / "drawn" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[:20])))
    paths = [str(ROOT / "src"), str(FIDELITY), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [sys.executable, ROOT / "tests" / "fidelity_worker.py", "drawn", "real"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TORCH_HOME": str(tmp_path / "torch")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    theirs, ours, notes = result["theirs"], result["ours"]["metrics"], result["ours"]["notes"]
    theirs.pop("f_score")
    assert theirs == {
        "frechet_inception_distance": ours["fid"]["value"],
        "kernel_inception_distance_mean": ours["kid"]["value"],
        "kernel_inception_distance_std": ours["kid"]["deviation"],
        "inception_score_mean": ours["is"]["value"],
        "inception_score_std": ours["is"]["deviation"],
        "precision": ours["precision"]["value"],
        "recall": ours["recall"]["value"],
    }
    assert 0 < theirs["precision"] < 1 and 0 < theirs["recall"] < 1 and theirs["inception_score_mean"] > 1.01
    assert (ours["fid"]["n"], ours["fid"]["reference"]["n"]) == (20, 10) and "299x299" in ours["fid"]["resize"]
    assert set(ours) == {"fid", "kid", "is", "precision", "recall", "kpe"}  # pixels are no news beside Inception
    assert any("not the published ones" in note for note in notes) and any("dinov2-large" in note for note in notes)
    assert result["auto"] == ["Inception-v3 (torch-fidelity)", 2, 2048]
    assert result["of statistics"] == pytest.approx(5 + (1 - 2) ** 2 + 0 + 3**2)  # of means and of roots, which commute
    assert "malice.pth is no Inception weight file" in result["refusal"] and not (tmp_path / "harm").exists()
