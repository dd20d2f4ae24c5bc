"""The detector of memorized samples: fitted on one seed, judged on others, next to scores that need no fit.

    python -m benchmarks.science.detector
    python -m benchmarks.science.detector --models emoji-memorizing --guidance-scale 3 --num-inference-steps 20

Each run adds its models, or replaces them, on the page and in its numbers; those of other runs stay. Plain Euler, the embedded
models that memorize; of text to image, one zero token stands for 256 (`examples.train_text_to_image.OneZeroToken`). What
counts was fixed before the run: the detector is fitted on the first seed and judged on the others; the goal is an area under
the ROC curve of .90 on every model. "up to t = .6" reads the first part of the record, early enough to act.

Baselines, signs as on the first seed: path energy, `settling`, and the norm band: the share of steps whose ``||v||`` lies in
the middle 90 % of the other samples of that seed (after the idea of arXiv 2605.22050, whose formula was not at hand: the name
is ours). With ``--guidance-scale`` above 1, also how far the conditional prediction lies from the unconditional one, as its
mean over the steps: of the velocity, ``||v_c - v_u||``, and of the noise that it implies, ``t ||v_c - v_u||``, the score of
Wen et al. (arXiv 2407.21720).
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
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
from examples.train_text_to_image import OneZeroToken

GOAL = 0.9
EARLY = 0.6


def drawn(
    model: str, seed: int, count: int, steps: int, guidance_scale: float | None, cache: Path
) -> tuple[KPETrace, torch.Tensor, list[str]]:
    """Records, labels and subjects of ``count`` samples; ``guidance_scale`` None is the model's own."""
    folder = embedded_model(model)
    settings = SamplingSettings(model=model, num_inference_steps=steps, seed=seed, guidance_scale=guidance_scale)
    if model.startswith("emoji"):
        settings = replace(settings, pipeline_args={"max_sequence_length": 1})
    sampler = Sampler(folder, settings, torch.device("cpu"))
    sampler.pipe.record_turn, sampler.pipe.record_guidance = True, guidance_scale is not None
    if sampler.id2label is None:
        sampler.pipe.transformer.set_attn_processor(OneZeroToken())
        with np.load(folder / IMAGES) as archive:
            prompts = [Prompt(str(caption)) for caption in archive["captions"]]
    else:
        prompts = [Prompt(label) for label in range(sampler.pipe.num_classes)]
    guided = "" if guidance_scale is None else f"-guidance-{guidance_scale:g}"
    path = cache / f"detector-{model}-{seed}-{count}-{steps}{guided}.safetensors"
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


def baselines(first: KPETrace, hits: torch.Tensor, trace: KPETrace) -> dict[str, tuple[int, np.ndarray]]:
    """Scores (B,) of ``trace``, each with its sign: times that, higher is memorized, as far as ``first`` tells."""
    low, high = first.power[~hits].quantile(0.05, 0), first.power[~hits].quantile(0.95, 0)
    found = {}
    scores: dict[str, Callable[[KPETrace], torch.Tensor]] = {
        "path energy": lambda t: t.path_energy.total,
        "settling": lambda t: t.settling,
        "norm band": lambda t: ((t.power >= low) & (t.power <= high)).double().mean(1),
    }
    if first.guidance_norm is not None:
        scores["guidance norm"] = lambda t: t.guidance_norm.mean(1)
        scores["guidance norm of the noise (Wen et al.)"] = lambda t: (t.guidance_norm * t.t[:-1]).mean(1)
    for name, of in scores.items():
        sign = 1 if score(of(first).nan_to_num(0).numpy(), hits.numpy(), [0] * len(hits)).auc >= 0.5 else -1
        found[name] = sign, of(trace).nan_to_num(0).numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["memorizing", "emoji-memorizing"])
    parser.add_argument("--num-samples", type=int, default=1000, help="per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--num-inference-steps", dest="steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    args, began = parser.parse_args(), time.time()
    numbers = args.output / "results" / "detector.json"
    models = json.loads(numbers.read_text())["models"] if numbers.exists() else {}
    for model in args.models:
        runs = [drawn(model, seed, args.num_samples, args.steps, args.guidance_scale, args.cache) for seed in args.seeds]
        first, hits, subjects = runs[0]
        rest = KPETrace.cat([trace for trace, _, _ in runs[1:]])
        held_out = torch.cat([other for _, other, _ in runs[1:]]).numpy()
        names = [name for _, _, own in runs[1:] for name in own]
        detector = fit_detector(first, hits, subjects)
        predicted: dict[str, Any] = {
            "detector": detector.probability(rest).numpy(),
            f"detector, up to t = {EARLY:g}": detector.probability(rest, EARLY).numpy(),
        }
        found = {name: vars(score(values, held_out, names)) for name, values in predicted.items()}
        for name, (sign, values) in baselines(first, hits, rest).items():
            found[name] = vars(score(sign * values, held_out, names)) | {"sign": sign}
        models[model if args.guidance_scale is None else f"{model}, guidance {args.guidance_scale:g}"] = {
            "num_samples": args.num_samples,
            "seeds": args.seeds,
            "steps": args.steps,
            "num_held_out": len(held_out),
            "memorized": float(held_out.mean()),
            "held_out": found,
            "cross_validated": dict(detector.scores),
        }
    result = {"num_samples": args.num_samples, "seeds": args.seeds, "models": models, "environment": environment(began)}
    write_page(args.output, "detector", page(models), result)


def page(models: dict[str, Any]) -> str:
    about = (
        "Plain Euler. Fitted on the first seed, judged on the others. `detector` is `diffusers_kts.memorization.detector`, "
        "which keeps one latent, the last velocity. *low*: memorized samples have low values, as far as the first seed "
        "tells."
    )
    return "\n\n".join([about, *(section(name, found) for name, found in models.items())])


def section(name: str, model: dict[str, Any]) -> str:
    """The part of the page on one model."""
    held_out = model["held_out"]
    rows = [
        [
            f"{score}, low" if s.get("sign") == -1 else score,
            f"{s['auc']:.3f} ({s['low']:.3f} to {s['high']:.3f})",
            f"{s['tpr_at_1_percent']:.2f}",
            "" if s["auc_within_groups"] is None else f"{s['auc_within_groups']:.3f}",
            f"{s['brier']:.3f}" if score.startswith("detector") else "",
        ]
        for score, s in held_out.items()
    ]
    text = name.startswith("emoji")
    header = ["score", "AUC (95 %)", "TPR at 1 % FPR", f"AUC within a {'prompt' if text else 'class'}", "Brier"]
    best = held_out["detector"]["auc"]
    verdict = f"{'Reached' if best >= GOAL else 'Not reached'}: AUC {best:.3f}, goal {GOAL}."
    by_group = model["cross_validated"].get("groups")
    groups = "prompts" if text else "classes"
    unseen = f" Cross-validated over whole {groups} on the first seed: {by_group['auc']:.3f}." if by_group else ""
    drawn = f"{model['steps']} steps, {model['num_samples']} samples of each of seeds {', '.join(map(str, model['seeds']))}."
    memorized = f"{model['memorized']:.1%} of {model['num_held_out']} held-out samples memorized"
    return f"## {name}: {memorized}\n\n{drawn} {verdict}{unseen}\n\n{table(header, rows)}"


if __name__ == "__main__":
    main()
