"""``kts audit --checkpoints``: which are taken, what is drawn from each, the decision, and refusals before any work."""

import json
import shutil
import weakref
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from huggingface_hub import ModelCard
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from tiny_diffusion import DIFFUSION
from tiny_pipelines import tiny_sd3

from diffusers_kts import embedded_model
from diffusers_kts.audit import job, series
from diffusers_kts.audit.checkpoints import find_checkpoints, with_parts_of
from diffusers_kts.audit.sampling import PlainSampler
from diffusers_kts.audit.settings import AuditSettings, fewest_samples
from diffusers_kts.audit.training import TrainingImages
from diffusers_kts.memorization.fraction import memorized_fraction
from diffusers_kts.seeding import sample_generators

SCHEMA = json.loads(Path(job.__file__).with_name("report.schema.json").read_text())

HELD_OUT = Path(__file__).parents[1] / "data" / "fashion_mnist_slice.npz"


def pooled(images):
    """A feature network for the tests: means of quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2)


def lora(folder, seed):
    """A LoRA of `tiny_sd3` with random weights, saved as diffusers' training scripts do."""
    pipe = tiny_sd3()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if "lora_" in name:
                weight.normal_()
    StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory):
    """A folder with a base pipeline, two LoRAs on it, whose order by name is not that of their steps, pictures and prompts."""
    folder = tmp_path_factory.mktemp("fine-tune")
    tiny_sd3().save_pretrained(folder / "base")
    for step in (90, 1000):
        lora(folder / "runs" / f"checkpoint-{step}", step)
    (folder / "pictures").mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i % 5).integers(0, 256, (32, 32, 3), np.uint8)  # the last equals the first
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    (folder / "prompts.txt").write_text("a fox\na bear\n")
    return folder


ARGS = "--model base --training-images pictures --prompts prompts.txt --num-samples 8 --num-inference-steps 2 --batch-size 8 "
ARGS += "--height 32 --width 32 --features test_checkpoints:pooled --limit 0.4 --guidance-scale 1"


def test_loras_are_drawn_from_one_after_another_on_their_base(fine_tune, kts, monkeypatch):
    monkeypatch.chdir(fine_tune)
    (fine_tune / "README.md").write_text("# Koala\n\n## Mine\n")
    given = f"{ARGS} --checkpoints runs/checkpoint-1000 runs/checkpoint-90 --output out --card README.md"
    code, out, err = kts("audit", *given.split())
    assert code == 0, err
    card = ModelCard.load(fine_tune / "README.md")
    assert card.data.model_name == "base" and "## Mine" in card.text and "at most 37 % (95 %)" in card.text
    report, rows = json.loads((fine_tune / "out" / "report.json").read_text()), pd.read_parquet("out/samples.parquet")
    jsonschema.validate(report, SCHEMA)
    assert [*report["checkpoints"]] == ["base model", "step 90", "step 1000"] == list(rows["sampler"].unique())
    assert report["last_below"] == "step 1000" and "at most 37 % (95 %)" in out  # 1 - .025^(1/8)
    assert report["training_images"]["equal"] == [["0.png", "5.png"]]
    page = (fine_tune / "out" / "report.html").read_text()
    for name, own in rows.groupby("sampler"):
        path, excess = (report["checkpoints"][name][key] for key in ("path_energy_per_dim", "excess_per_dim"))
        energy = np.median(own["per_dim"])
        assert path["total"]["median"] == pytest.approx(energy) and 0 < excess["p10"] < excess["median"] < energy
        assert f"{energy:.4f}<br><small>{excess['median']:.4f}</small>" in page
    assert "0.png, 5.png" in page and page.index("Duplicates") < page.index("against the training step")

    training = TrainingImages.load(fine_tune / "pictures", (3, 32, 32), False)
    for name, step in (("base model", None), ("step 90", 90), ("step 1000", 1000)):  # each drawn by hand, on a fresh base
        pipe = StableDiffusion3Pipeline.from_pretrained(fine_tune / "base")
        pipe.set_progress_bar_config(disable=True)
        if step is not None:
            pipe.load_lora_weights(fine_tune / "runs" / f"checkpoint-{step}")
        image = pipe(
            "a bear", generator=sample_generators(0, [3]), num_inference_steps=2, height=32, width=32, guidance_scale=1,
            output_type="pt",
        ).images  # fmt: skip
        row = rows[(rows["sampler"] == name) & (rows["sample"] == 3)].iloc[0]
        distances = (training.images - image).flatten(1).norm(dim=1)
        assert row["subject"] == "a bear" and row["d1"] == pytest.approx(float(distances.min()), abs=0.1)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_lora_of_a_diffusion_model_keeps_its_scheduler(fine_tune, kts, tmp_path, name):
    pipe = DIFFUSION[name]()
    pipe.save_pretrained(tmp_path / "base")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    type(pipe).save_lora_weights(tmp_path / "checkpoint-7", unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    for shared in ("pictures", "prompts.txt"):
        (tmp_path / shared).symlink_to(fine_tune / shared)
    code, _, err = kts("audit", *f"{ARGS} --image-size 32 --checkpoints checkpoint-7 --output out".split())
    assert code == 0, err
    rows = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    drawn = {sampler: own["d1"].to_numpy() for sampler, own in rows.groupby("sampler")}
    assert not np.allclose(drawn["base model"], drawn["step 7"])
    image = DIFFUSION[name]()(
        "a bear", generator=sample_generators(0, [1]), num_inference_steps=2, height=32, width=32, guidance_scale=1,
        output_type="pt",
    ).images  # fmt: skip
    training = TrainingImages.load(fine_tune / "pictures", (3, 32, 32), False)
    assert drawn["base model"][1] == pytest.approx(float((training.images - image).flatten(1).norm(dim=1).min()), abs=0.1)


class Malice:
    def __reduce__(self):
        return Path.mkdir, (Path("harm"),)


def trained(folder, seed):
    """The transformer of `tiny_sd3` after a training: with other weights."""
    torch.manual_seed(seed)
    transformer = tiny_sd3().transformer
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    transformer.save_pretrained(folder)
    return transformer


def test_a_checkpoint_may_hold_the_transformer_alone(fine_tune, kts, tmp_path, monkeypatch):
    """As accelerate's save_state leaves it: averaged weights come first, pickles are not read, the base is drawn, too. Of
    the pipelines one is held at a time."""
    init, load, held, before = PlainSampler.__init__, series.load_parts, [], []

    def note(self, sampler, prompts):
        held.append(weakref.ref(sampler.pipe.transformer))
        init(self, sampler, prompts)

    def look(*args):
        before.append([pipeline() is not None for pipeline in held])
        return load(*args)

    monkeypatch.setattr(PlainSampler, "__init__", note)
    monkeypatch.setattr(series, "load_parts", look)
    last = {20: trained(tmp_path / "checkpoint-20" / "transformer", 20)}
    trained(tmp_path / "checkpoint-40" / "transformer", 1)
    last[40] = trained(tmp_path / "checkpoint-40" / "transformer_ema", 40)
    shutil.copytree(fine_tune / "base" / "scheduler", tmp_path / "checkpoint-40" / "logs")  # no part of the pipeline
    (tmp_path / "checkpoint-40" / "logs" / "config.json").write_text("{}")
    config = tmp_path / "checkpoint-40" / "transformer_ema" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"decay": 0.999, "optimization_step": 40}))  # of an EMAModel
    for step in last:
        for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
            torch.save(Malice(), tmp_path / f"checkpoint-{step}" / name)
    for shared in ("base", "pictures", "prompts.txt"):
        (tmp_path / shared).symlink_to(fine_tune / shared)
    code, out, err = kts("audit", *f"{ARGS} --checkpoints checkpoint-40 checkpoint-20 --output out".split())
    assert code == 0, err
    assert before == [[False], [False, False]]
    rows, report = pd.read_parquet("out/samples.parquet"), json.loads(Path("out/report.json").read_text())
    assert [*report["checkpoints"]] == ["base model", "step 20", "step 40"] and not Path("harm").exists()
    assert (
        report["model"] == "base" and "Averaged weights were drawn from where a checkpoint has them (transformer_ema)" in out
    )
    training = TrainingImages.load(Path("pictures"), (3, 32, 32), False)
    for step, transformer in {0: None, **last}.items():
        pipe = StableDiffusion3Pipeline.from_pretrained("base", **({"transformer": transformer} if step else {}))
        image = pipe(
            "a bear", generator=sample_generators(0, [3]), num_inference_steps=2, height=32, width=32, guidance_scale=1,
            output_type="pt",
        ).images  # fmt: skip
        drawn = rows[(rows["sampler"] == (f"step {step}" if step else "base model")) & (rows["sample"] == 3)]
        distances = (training.images - image).flatten(1).norm(dim=1)
        assert drawn["d1"].item() == pytest.approx(float(distances.min()), abs=0.1)


def test_of_a_checkpoint_only_parts_of_its_base_count_and_quantized_ones_are_not_compared(fine_tune, tmp_path):
    part, base = tmp_path / "run-3" / "transformer", tmp_path / "base"
    tiny_sd3().transformer.save_pretrained(part)
    alone = find_checkpoints([tmp_path / "run-3"])
    assert with_parts_of(fine_tune / "base", alone) == alone
    (tmp_path / "run-3" / "logs").mkdir()
    (tmp_path / "run-3" / "logs" / "config.json").write_text("{}")
    assert with_parts_of(fine_tune / "base", find_checkpoints([tmp_path / "run-3"])) == alone
    shutil.copytree(fine_tune / "base", base)
    config = json.loads((base / "transformer" / "config.json").read_text())
    (base / "transformer" / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()  # what it holds is not looked at
    assert with_parts_of(base, alone) == alone


@pytest.fixture(scope="module")
def run_of_pipelines(tmp_path_factory):
    """Two embedded models as checkpoints: the one that generalizes, then the one that memorized."""
    folder = tmp_path_factory.mktemp("pipelines")
    with np.load(embedded_model() / "training_images.npz") as training, np.load(HELD_OUT) as slice:
        np.save(folder / "held-out.npy", np.concatenate([slice["x_test"][:40], training["images"][:1]]))  # and one that is not
    for name, model in (("step_200", "memorizing"), ("step_100", "generalizing")):
        (folder / name).symlink_to(embedded_model(model))
    return folder


def settings(folder, steps, **changes):
    values = {
        "num_samples": 24,
        "num_inference_steps": 10,
        "batch_size": 24,
        "limit": 0.15,
        "features": "test_checkpoints:pooled",
    }
    values |= {"reference": folder / "held-out.npy"}
    values |= {"training_images": embedded_model() / "training_images.npz", "output": folder / "out"}
    return AuditSettings(checkpoints=[folder / f"step_{step}" for step in steps], **values | changes)


def test_the_last_checkpoint_below_the_limit_is_named_and_more_may_come(run_of_pipelines, monkeypatch):
    folder, plain, drawn = run_of_pipelines, PlainSampler.plain, []

    def note(self, block, size):
        drawn.append((self.sampler.settings.model, block))
        return plain(self, block, size)

    monkeypatch.setattr(PlainSampler, "plain", note)
    job.run_audit(settings(folder, [100]), show_progress=False)
    result = job.run_audit(settings(folder, [200, 100]), show_progress=False)
    assert [model for model, _ in drawn] == [str(folder / "step_100"), str(folder / "step_200")]  # none is drawn twice
    report = json.loads((folder / "out" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    for found in report["checkpoints"].values():
        for kind in ("pixels", "transformed", "features"):
            copies = found["copies"][kind]
            assert copies["real"]["n"] == 40 and copies["calibrated"]["n"] == 24
            assert copies["authpct"]["real"]["n"] == 40 and (copies["calibrated_l2"] is None) == (kind == "transformed")
        assert found["copies"]["pixels"]["samples"]["count"] == found["f_mem"]["count"]
    assert report["reference"] == 41 and any("1 reference images equal" in note for note in report["notes"])
    early, late = (report["checkpoints"][f"step {step}"]["f_mem"] for step in (100, 200))
    assert early["count"] == 0 and early["high"] < 0.15 < late["high"] and report["last_below"] == "step 100"
    assert "The last checkpoint below the limit of 0.15 is step 100" in result.verdict[0] and late["count"] > 2
    rows = pd.read_parquet(folder / "out" / "samples.parquet")
    hits = rows[(rows["sampler"] == "step 200") & rows["memorized"]]
    for image in report["most_reproduced"]:
        assert image["samples"] == hits["sample"][hits["training_image_1"] == image["training_image"]].tolist()
    assert sum(len(image["samples"]) for image in report["most_reproduced"]) <= len(hits)

    before = (folder / "out" / "report.json").read_bytes()
    with pytest.raises(ValueError, match="of step 100 too, which is not among these checkpoints"):
        job.run_audit(settings(folder, [200]), show_progress=False)
    with pytest.raises(ValueError, match="an audit of checkpoints"):
        job.run_audit(settings(folder, [], model="memorizing"), show_progress=False)
    assert (folder / "out" / "report.json").read_bytes() == before


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3, 0.975])
def test_the_fewest_samples_that_can_prove_a_limit(limit):
    n = fewest_samples(limit)
    assert memorized_fraction(torch.zeros(n)).high < limit
    assert n == 1 or memorized_fraction(torch.zeros(n - 1)).high >= limit


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        ("nowhere-7", "there is no checkpoint at nowhere-7"),
        ("runs/empty-7", "holds neither model_index.json nor a .safetensors file"),
        ("prompts.txt", "prompts.txt is no checkpoint"),
        ("runs", "runs is no checkpoint, but holds checkpoint-1000; give those in it, --checkpoints runs/checkpoint-*."),
        ("runs/checkpoint-90 base-5", "base-5 is a pipeline, runs/checkpoint-90/pytorch_lora_weights.safetensors a LoRA"),
        ("base-5 grey-6", "base-5 is a StableDiffusion3Pipeline, grey-6 a ClassConditionalFlowPipeline"),
        ("runs/checkpoint-90 other-90", "are both of step 90"),
        ("base", "holds no training step"),
        ("runs/checkpoint-90 foreign-3", "foreign-3/lora.safetensors is no LoRA of this pipeline"),
        ("runs/checkpoint-90 cut-4.safetensors", "cut-4.safetensors is no LoRA of this pipeline"),
        ("broken-8", "checkpoint broken-8 cannot be loaded"),
        ("broken-8/transformer", "is a part of a checkpoint; give the folder around it, "),
        ("parts-1", "parts-1/controlnet is no part of the pipeline base"),
        ("parts-2", "parts-2/transformer holds no .safetensors file; save it again, pickled weights are not loaded"),
        ("parts-3", "parts-3/transformer is another model than the transformer of base"),
        ("parts-4", "checkpoint parts-4/transformer cannot be loaded"),
        ("parts-5", "parts-5/transformer holds the variant 'fp16' alone; save it again without variant"),
        ("parts-6 --model broken-8", "transformer of the base model broken-8 cannot be loaded"),
        ("runs/checkpoint-90 --limit 0.05", "draw at least 72"),
        ("runs/checkpoint-90 --limit 1", "limit is 1.0"),
        ("runs/checkpoint-90 --model memorizing --prompts class.txt --height 28 --width 28", "takes no height"),
        ("runs/checkpoint-90 --training-images out/pictures", "are in the output folder"),
    ],
)
def test_unsuitable_checkpoints_end_with_one_sentence_before_any_work(fine_tune, kts, tmp_path, checkpoints, words):
    for name in ("base", "runs", "pictures", "prompts.txt"):
        (tmp_path / name).symlink_to(fine_tune / name) if name != "runs" else shutil.copytree(
            fine_tune / name, tmp_path / name
        )
    (tmp_path / "base-5").symlink_to(fine_tune / "base")
    (tmp_path / "grey-6").symlink_to(embedded_model())
    shutil.copytree(tmp_path / "runs" / "checkpoint-90", tmp_path / "other-90")
    for empty in ("runs/empty-7", "foreign-3"):
        (tmp_path / empty).mkdir()
    from safetensors.torch import save_file

    save_file({"transformer.nothing.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "foreign-3" / "lora.safetensors")
    whole = (tmp_path / "other-90" / "pytorch_lora_weights.safetensors").read_bytes()
    (tmp_path / "cut-4.safetensors").write_bytes(whole[:200])
    shutil.copytree(fine_tune / "base", tmp_path / "broken-8")
    (tmp_path / "broken-8" / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    config = tmp_path / "broken-8" / "transformer" / "config.json"
    for number, part in enumerate(("controlnet", "transformer", "transformer", "transformer"), 1):
        shutil.copytree(config.parent, tmp_path / f"parts-{number}" / part)
    (tmp_path / "parts-2" / "transformer" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "pickled.bin")
    larger = json.loads(config.read_text())
    larger["num_layers"] += 1
    tiny_sd3().transformer.from_config(larger).save_pretrained(tmp_path / "parts-3" / "transformer")
    tiny_sd3().transformer.save_pretrained(tmp_path / "parts-5" / "transformer", variant="fp16", max_shard_size="20KB")
    shutil.copytree(fine_tune / "base" / "transformer", tmp_path / "parts-6" / "transformer")
    (tmp_path / "class.txt").write_text("Bag")
    given, *more = checkpoints.split(" --")
    if "out/" in checkpoints:
        shutil.copytree(fine_tune / "pictures", tmp_path / "out" / "pictures")
    options = [word for option in more for word in f"--{option}".split()]
    code, _, err = kts("audit", *ARGS.split(), "--checkpoints", *given.split(), "--output", "out", *options)
    assert code == 2 and words in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "out" / "audit.json").exists()


def test_a_model_without_loras_and_words_without_an_option_are_refused(fine_tune, kts):
    lora = fine_tune / "runs" / "checkpoint-90"
    code, _, err = kts("audit", "--checkpoints", lora, "--num-samples", 80, "--num-inference-steps", 2, "--features", "pixels")
    assert code == 2 and "ClassConditionalFlowPipeline takes no LoRA; give its base pipeline with --model" in err
    code, _, err = kts("audit", lora)
    assert code == 2 and f"{lora} belongs to no option; put --checkpoints before it" in err
