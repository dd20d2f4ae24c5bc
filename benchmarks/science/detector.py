"""The detector of memorized samples: fitted on one seed, judged on others, next to scores that need no fit.

    python -m benchmarks.science.detector

Plain Euler, 50 steps, the embedded models that memorize. What counts was fixed before the run: the detector is fitted on the
first seed and judged on the others; the goal is an area under the ROC curve of .90 on every model. "up to t = .6" reads the
first part of the record, early enough to act. Baselines, signs as on the first seed: path energy, `settling`, and the norm
band: the share of steps whose ``||v||`` lies in the middle 90 % of the other samples of that seed (after the idea of arXiv
2605.22050, whose formula was not at hand: the name is ours).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import HERE, environment, table, write_page
from diffusers_kts.images.training_images import load_images
from diffusers_kts.kpe.trace import KPETrace
from diffusers_kts.memorization.detector_fit import fit_detector, score
from diffusers_kts.memorization.fraction import measure_memorization
from diffusers_kts.memorization.neighbors import distinct_images
from diffusers_kts.models import embedded_model
from diffusers_kts.sampling.find import IMAGES
from diffusers_kts.sampling.prompts import Prompt, in_turn
from diffusers_kts.sampling.sampler import Sampler
from diffusers_kts.sampling.settings import SamplingSettings

GOAL = 0.9
EARLY = 0.6


def drawn(model: str, seed: int, count: int, steps: int, cache: Path) -> tuple[KPETrace, torch.Tensor, list[str]]:
    """Records, labels and subjects of ``count`` samples."""
    folder = embedded_model(model)
    settings = SamplingSettings(model=model, num_inference_steps=steps, seed=seed)
    sampler = Sampler(folder, settings, torch.device("cpu"))
    sampler.pipe.record_turn = True
    if sampler.id2label is None:
        with np.load(folder / IMAGES) as archive:
            prompts = [Prompt(str(caption)) for caption in archive["captions"]]
    else:
        prompts = [Prompt(label) for label in range(sampler.pipe.num_classes)]
    path = cache / f"detector-{model}-{seed}-{count}-{steps}.safetensors"
    labels = path.with_suffix(".npy")
    asked = in_turn(prompts, range(count))
    if not labels.exists():
        cache.mkdir(parents=True, exist_ok=True)
        training = load_images(folder / IMAGES, sampler.image_shape(prompts[:1]))
        distinct, traces, hits = distinct_images(training), [], []
        for start in range(0, count, 50):
            block = range(start, min(start + 50, count))
            batch = sampler.draw(block, [asked[i] for i in block])
            traces.append(batch.trace)
            hits.append(measure_memorization(batch.images, training, distinct=distinct).is_memorized)
        KPETrace.cat(traces).save(path)
        np.save(labels, torch.cat(hits).numpy())
        print(f"{model}, seed {seed}: drawn", flush=True)
    return KPETrace.load(path), torch.from_numpy(np.load(labels)), [str(prompt.text) for prompt in asked]


def baselines(first: KPETrace, hits: torch.Tensor, trace: KPETrace) -> dict[str, np.ndarray]:
    """Scores (B,) of ``trace``; higher is memorized, as far as ``first`` tells."""
    low, high = first.power[~hits].quantile(0.05, 0), first.power[~hits].quantile(0.95, 0)
    found = {}
    for name, of in {
        "path energy": lambda t: t.path_energy.total,
        "settling": lambda t: t.settling,
        "norm band": lambda t: ((t.power >= low) & (t.power <= high)).double().mean(1),
    }.items():
        sign = 1 if score(of(first).nan_to_num(0).numpy(), hits.numpy(), [0] * len(hits)).auc >= 0.5 else -1
        found[name] = sign * of(trace).nan_to_num(0).numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["memorizing", "emoji-memorizing"])
    parser.add_argument("--num-samples", type=int, default=1000, help="per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--num-inference-steps", dest="steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    args, began = parser.parse_args(), time.time()
    texts, results = [], {}
    for model in args.models:
        runs = [drawn(model, seed, args.num_samples, args.steps, args.cache) for seed in args.seeds]
        first, hits, subjects = runs[0]
        rest = KPETrace.cat([trace for trace, _, _ in runs[1:]])
        held_out = torch.cat([other for _, other, _ in runs[1:]]).numpy()
        names = [name for _, _, own in runs[1:] for name in own]
        detector = fit_detector(first, hits, subjects)
        predicted: dict[str, Any] = {
            "detector": detector.probability(rest).numpy(),
            f"detector, up to t = {EARLY:g}": detector.probability(rest, EARLY).numpy(),
        }
        found = {name: vars(score(p, held_out, names)) for name, p in (predicted | baselines(first, hits, rest)).items()}
        results[model] = {
            "memorized": float(held_out.mean()),
            "held_out": found,
            "cross_validated": dict(detector.scores),
        }
        rows = [
            [
                name, f"{s['auc']:.3f} ({s['low']:.3f} to {s['high']:.3f})", f"{s['tpr_at_1_percent']:.2f}",
                "" if s["auc_within_groups"] is None else f"{s['auc_within_groups']:.3f}",
                f"{s['brier']:.3f}" if name.startswith("detector") else "",
            ]
            for name, s in found.items()
        ]  # fmt: skip
        within = "class" if model == "memorizing" else "prompt"
        header = ["score", "AUC (95 %)", "TPR at 1 % FPR", f"AUC within a {within}", "Brier"]
        best = found["detector"]["auc"]
        verdict = f"{'Reached' if best >= GOAL else 'Not reached'}: AUC {best:.3f}, goal {GOAL}."
        by_group = detector.scores.get("groups")
        groups = "classes" if model == "memorizing" else "prompts"
        unseen = f" Cross-validated over whole {groups} on the first seed: {by_group['auc']:.3f}." if by_group else ""
        texts.append(
            f"## {model}: {held_out.mean():.1%} of {len(held_out)} held-out samples memorized\n\n{verdict}{unseen}\n\n"
            + table(header, rows)
        )
    about = (
        f"Plain Euler, {args.steps} steps. Fitted on seed {args.seeds[0]}, judged on the others. "
        "`detector` is `diffusers_kts.memorization.detector`, which keeps one latent, the last velocity."
    )
    result = {"num_samples": args.num_samples, "seeds": args.seeds, "models": results, "environment": environment(began)}
    write_page(args.output, "detector", "\n\n".join([about, *texts]), result)


if __name__ == "__main__":
    main()
