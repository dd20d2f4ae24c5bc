"""What the path energy measures, and what its excess measures, on an embedded model and the training images it memorized.

    python -m benchmarks.science.excess

Plain Euler. The density at a sample is that of the model's training images: ``-log`` of the distance to the 10th nearest, L2
in pixels. Decided before the run: a claim holds where its 95 % interval (Fisher's z; of an AUC that of Hanley and McNeil)
excludes 0, or .5 for an AUC.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import HERE, environment, table, write_page
from benchmarks.science.fashion_mnist import to_images
from benchmarks.science.paper_sections import change
from benchmarks.science.significance import Test, rank_correlation
from diffusers_kts import ClassConditionalFlowPipeline, KPEMonitorPipeline, KPETrace, embedded_model
from diffusers_kts.memorization.detector_fit import score
from diffusers_kts.memorization.fraction import measure_memorization
from diffusers_kts.memorization.neighbors import nearest_neighbors

BATCH, NEIGHBOR = 250, 10


def draw(name: str, count: int, steps: int, seed: int) -> tuple[torch.Tensor, KPETrace]:
    """Images (B, 1, H, W) in [0, 1], classes in turn, and their record."""
    pipe = KPEMonitorPipeline.from_pipe(ClassConditionalFlowPipeline.from_pretrained(embedded_model(name)))
    pipe.set_progress_bar_config(disable=True)
    pipe.record_turn = True
    generator, images, traces = torch.Generator().manual_seed(seed), [], []
    for part in (torch.arange(count) % 10).split(BATCH):
        out = pipe(part, num_inference_steps=steps, guidance_scale=1.0, generator=generator, output_type="pt")
        images.append(out.images)
        traces.append(out.kpe)
    return torch.cat(images), KPETrace.cat(traces)


def interval(test: Test) -> dict[str, float]:
    return {"value": test.change, "low": test.low, "high": test.high}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="memorizing", help="an embedded model with training images")
    options.add_argument("--num-samples", type=int, default=1000, help="per seed")
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options.add_argument("--num-inference-steps", dest="steps", type=int, default=50)
    options.add_argument("--output", type=Path, default=HERE, help="folder of results/")
    args, began = options.parse_args(), time.time()
    with np.load(embedded_model(args.model) / "training_images.npz") as data:
        training = to_images(data["images"])
    drawn = [draw(args.model, args.num_samples, args.steps, seed) for seed in args.seeds]
    images, trace = torch.cat([images for images, _ in drawn]), KPETrace.cat([trace for _, trace in drawn])
    memorized = measure_memorization(images, training).is_memorized.numpy()
    density = -nearest_neighbors(images, training, k=NEIGHBOR)[0][:, -1].log()
    scores = {
        "path energy": trace.path_energy.total,
        "displacement": trace.displacement,
        "excess": trace.excess,
        "settling": trace.settling,
    }
    found, rows = {}, []
    for name, values in scores.items():
        correlations = [rank_correlation("", values, other) for other in (scores["path energy"], density)]
        area = score(values.double().numpy(), memorized, [0] * len(memorized))
        found[name] = {
            "spearman_with_path_energy": interval(correlations[0]),
            "spearman_with_density": interval(correlations[1]),
            "auc_memorized": {"value": area.auc, "low": area.low, "high": area.high},
        }
        shown = f"{area.auc:.2f} ({area.low:.2f} to {area.high:.2f})"
        rows.append([name, *(change(correlation) for correlation in correlations), shown])
    share = float((trace.excess / trace.path_energy.total).mean())
    header = ["of a sample", "Spearman with path energy (95 %)", f"with density, {NEIGHBOR}th neighbor", "AUC for memorized"]
    text = (
        f"`{args.model}`, plain Euler, {args.steps} steps, {len(images)} samples of all seeds together, "
        f"{memorized.mean():.1%} memorized. An AUC below .5 says that memorized samples have less "
        f"of it. The excess is {share:.1%} of the path energy.\n\n{table(header, rows)}"
    )
    result = {
        "num_samples": args.num_samples,
        "seeds": args.seeds,
        "environment": environment(began),
        "model": args.model,
        "num_inference_steps": args.steps,
        "memorized": float(memorized.mean()),
        "excess_share": share,
        "scores": found,
    }
    write_page(args.output, "excess", text, result)
    print(text)


if __name__ == "__main__":
    main()
