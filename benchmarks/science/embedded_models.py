"""What the two embedded models do, measured: class accuracy, memorization, and what each preset changes.

    python -m benchmarks.science.embedded_models --data fashion_mnist.npz

A small convolutional classifier is trained on the real training images and judged on the real test images; then it judges
plain 50-step samples of the generalizing model. Samples of the memorizing model, 100 steps, plain and with every preset from
the same noises: F_mem (share with d1/d2 < 1/3, L2 in pixels) against its training images, and FD, the Frechet distance to the
real test images in the classifier's last hidden layer. Writes ``benchmarks/results/embedded_models.json``, from which
``tools/cards.py`` writes the models' cards, and the table of the README.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import environment, write_between
from benchmarks.science.fashion_mnist import CACHE, Classifier, load_data, to_images
from benchmarks.science.judge import Judge
from diffusers_kts import PRESETS, ClassConditionalFlowPipeline, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.memorization.fraction import measure_memorization

RESULTS = Path(__file__).parents[1] / "results" / "embedded_models.json"
README = Path(__file__).parents[2] / "README.md"
MARKS = ("<!-- measured by benchmarks/science/embedded_models.py -->", "<!-- end of measured -->")


def sample(name: str, count: int, steps: int, guidance_scale: float = 1.0, preset: str = "off") -> dict:
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model(name))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS[preset])
    labels, generator = torch.arange(count) % 10, torch.Generator().manual_seed(1)
    images, energies = [], []
    for part in labels.split(250):
        call = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "generator": generator, "output_type": "pt"}
        images.append(pipe(part, **call).images)
        energies.append(pipe.scheduler.kpe.per_dim)
    return {
        "images": torch.cat(images),
        "labels": labels,
        "energy_per_dim": torch.cat(energies).mean().item(),
        "network_calls": len(pipe.scheduler.timesteps),
    }


def measure_presets(judge: Judge, count: int) -> dict:
    with np.load(embedded_model("memorizing") / "training_images.npz") as data:
        training = to_images(data["images"])
    rows = {}
    for preset in PRESETS:
        drawn = sample("memorizing", count, 100, preset=preset)
        images = drawn["images"]
        f_mem = measure_memorization(images, training).f_mem
        rows[preset] = {
            "settings": {k: v for k, v in PRESETS[preset].items() if k in ("alpha_0", "beta_0", "touchdown")},
            "network_calls": drawn["network_calls"],
            "energy_per_dim": drawn["energy_per_dim"],
            "f_mem": [f_mem.fraction, f_mem.low, f_mem.high],
            "frechet_distance": judge.frechet(images),
            "class_accuracy": (judge.classifier.predict(images) == drawn["labels"]).float().mean().item(),
        }
        print(preset, rows[preset], flush=True)
    return {"training_images": len(training), "presets": rows}


def measure_guidance(classifier: Classifier, training: torch.Tensor, count: int) -> dict:
    rows = {}
    for guidance in (1.0, 1.5, 2.0):
        drawn = sample("generalizing", count, 50, guidance)
        right = (classifier.predict(drawn["images"]) == drawn["labels"]).float()
        rows[str(guidance)] = {
            "class_accuracy": right.mean().item(),
            "per_class": [right[drawn["labels"] == c].mean().item() for c in range(10)],
        }
        if guidance == 1.0:
            rows[str(guidance)]["f_mem"] = measure_memorization(drawn["images"], training).f_mem.fraction
        print("guidance", guidance, rows[str(guidance)], flush=True)
    return rows


def presets_table(result: dict) -> str:
    lines = [
        f"{result['num_samples']} samples, 100 steps, seed 1; FD: Frechet distance to real test images, classifier features.",
        "",
        "| preset | alpha_0 / beta_0 | touchdown | network calls | F_mem % (95 %) | FD |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["memorizing"]["presets"].items():
        s, (f, low, high) = row["settings"], (100 * x for x in row["f_mem"])
        lines.append(
            f"| {name} | {s['alpha_0']:g} / {s['beta_0']:g} | {s['touchdown'] or ''} | {row['network_calls']} | "
            f"{f:.1f} ({low:.1f}-{high:.1f}) | {row['frechet_distance']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    began = time.time()
    data = load_data(args.data)
    classifier = Classifier(data, args.epochs, CACHE)
    result = {
        "classifier_test_accuracy": classifier.accuracy,
        "memorizing": measure_presets(Judge(classifier, data.x_test), args.num_samples),
        "generalizing": measure_guidance(classifier, data.x_train, args.num_samples),
        "num_samples": args.num_samples,
        **environment(began),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    write_between(README, MARKS, presets_table(result))


if __name__ == "__main__":
    main()
