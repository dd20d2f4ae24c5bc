"""How far the energy after a few steps predicts the final one, and what either has to do with quality.

    python -m benchmarks.science.generate_screening --data fashion_mnist.npz

On the embedded generalizing model: ``kts generate --keep-top`` draws candidates of every class once in full. For each number
of screening steps, from the per-step record of the same candidates: Spearman's rank correlation, per class and then averaged,
of the energy so far with the final energy, how often the best candidate by the final energy survives, and the network calls
saved. And of the final and early energies with the confidence (probability of the asked-for class) of the classifier of
``benchmarks/science/fashion_mnist.py``. Writes ``benchmarks/results/generate_screening.json``.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.stats import spearmanr

from benchmarks.science.fashion_mnist import Classifier, load_data, to_images
from diffusers_kts.generate import run_generate
from diffusers_kts.generate.settings import GenerateSettings

RESULTS = Path(__file__).parents[1] / "results" / "generate_screening.json"
CLASSES = 10


def draw(candidates: int, steps: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, torch.Tensor]:
    """Rows, per-step records and images of ``candidates`` samples of every class."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "images_per_prompt": candidates,
            "num_inference_steps": steps,
            "batch_size": 50,
            "traces": True,
            "seed": seed,
        }
        assert run_generate(GenerateSettings(output=folder, **settings)).complete
        rows = pd.read_json(Path(folder, "metadata.jsonl"), lines=True)
        traces = pd.concat(map(pd.read_parquet, sorted(Path(folder, "traces").iterdir())))
        images = torch.stack([to_images(np.asarray(Image.open(Path(folder, name)))[None])[0] for name in rows["file_name"]])
    return rows, traces, images


def by_class(rows: pd.DataFrame, a: np.ndarray, b: np.ndarray) -> dict:
    """Spearman's rank correlation within every class: mean, and the range over classes."""
    found = [float(spearmanr(a[rows["label"] == c], b[rows["label"] == c]).statistic) for c in range(CLASSES)]
    return {"mean": float(np.mean(found)), "lowest": min(found), "highest": max(found)}


def survivors(rows: pd.DataFrame, early: np.ndarray, final: np.ndarray, n: int) -> float:
    """How often the first of ``n`` candidates by the final energy is in the better half by the early one."""
    kept = []
    for c in range(CLASSES):
        own = np.flatnonzero(rows["label"] == c)
        for group in own[: len(own) // n * n].reshape(-1, n):
            best_half = group[np.argsort(-early[group], kind="stable")[: (n + 1) // 2]]
            kept.append(group[np.argmax(final[group])] in best_half)
    return float(np.mean(kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--candidates", type=int, default=64, help="of each class")
    parser.add_argument("--num-inference-steps", dest="steps", type=int, default=32)
    args = parser.parse_args()
    began = time.time()
    classifier = Classifier(load_data(args.data))
    rows, traces, images = draw(args.candidates, args.steps, seed=1)
    confidence = classifier.probabilities(images)[torch.arange(len(rows)), torch.tensor(rows["label"].to_numpy())].numpy()

    power = traces["path_power"].to_numpy().reshape(len(rows), args.steps)
    sigmas = np.append(traces["sigma"].to_numpy()[: args.steps], 0.0)
    so_far = np.cumsum(0.5 * power * np.abs(np.diff(sigmas)), 1)
    final = rows["path_energy_total"].to_numpy()
    assert np.allclose(so_far[:, -1], final, rtol=1e-4)
    table = []
    for m in [m for m in (1, 2, 4, 8, 12, 16, 24) if m < args.steps]:
        saved = 0.5 * (args.steps - m) / args.steps
        table.append(
            {
                "screen_steps": m,
                "flow_time": float(1 - sigmas[m]),
                "calls_saved": saved,
                "with_final_energy": by_class(rows, so_far[:, m - 1], final),
                "best_of_8_survives": survivors(rows, so_far[:, m - 1], final, 8),
                "with_confidence": by_class(rows, so_far[:, m - 1], confidence),
            }
        )
        print(table[-1], flush=True)
    result = {
        "candidates_per_class": args.candidates,
        "steps": args.steps,
        "classifier_test_accuracy": classifier.accuracy,
        "mean_confidence": float(confidence.mean()),
        "final_energy_with_confidence": by_class(rows, final, confidence),
        "final_late_energy_with_confidence": by_class(rows, rows["path_energy_late"].to_numpy(), confidence),
        "screening": table,
        "seconds": round(time.time() - began),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "screening"}, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
