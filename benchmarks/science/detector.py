r"""The detector of memorized samples: fitted on some seeds, judged on others, next to scores that need no fit.

    python -m benchmarks.science.detector --models memorizing runs/n512/pipeline runs/n1024-seed1/pipeline
    emoji="--models emoji-memorizing --num-inference-steps 20 --fit-seeds 0 1 --seeds 2"
    python -m benchmarks.science.detector $emoji --guidance-scale 1
    python -m benchmarks.science.detector $emoji --guidance-scale 3

Each run adds its models, or replaces them, on the page and in its numbers; those of other runs stay. Plain Euler; models in
folders are those of ``benchmarks/science/trainings.py``; of text to image, one zero token stands for 256
(`examples.train_text_to_image.OneZeroToken`). What counts was fixed before the run: the detector is fitted on some seeds and
judged on others; the goal is an area under the ROC curve of .90 on every model. "up to t = .6" reads the first part of the
record, early enough to act.

Baselines, signs as on the seeds of the fit: path energy, `settling`, and the norm band: the share of steps whose ``||v||``
lies in the middle 90 % of the other samples of these seeds (after the idea of arXiv 2605.22050, whose formula was not at
hand: the name is ours). "share of its class" (or prompt) does not look at the sample: how many of the fit's samples of the
same class are memorized. With ``--guidance-scale`` above 1, also how far the conditional prediction lies from the
unconditional one, as its mean over the steps: of the velocity, ``||v_c - v_u||``, and of the noise that it implies,
``t ||v_c - v_u||``, the score of Wen et al. (arXiv 2407.21720).
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
from benchmarks.science.laboratory import short_name
from diffusers_kts.images.training_images import load_images
from diffusers_kts.kpe.trace import KPETrace
from diffusers_kts.memorization.detector_fit import fit_detector, score
from diffusers_kts.memorization.fraction import measure_memorization
from diffusers_kts.memorization.neighbors import distinct_images
from diffusers_kts.sampling.find import IMAGES, find_model, fingerprint
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
    folder = find_model(model)
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
    weights = fingerprint(folder)[:8]
    path = cache / f"detector-{short_name(model)}-{weights}-{seed}-{count}-{steps}{guided}.safetensors"
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
        print(f"{path.stem}: drawn", flush=True)
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


def joined(runs: list[tuple[KPETrace, torch.Tensor, list[str]]]) -> tuple[KPETrace, torch.Tensor, list[str]]:
    """Of all seeds."""
    traces, hits, subjects = zip(*runs, strict=True)
    return KPETrace.cat(list(traces)), torch.cat(hits), [subject for own in subjects for subject in own]


def kind(model: str) -> str:
    """What a sample of the model is asked to be."""
    return "prompt" if model.startswith("emoji") else "class"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["memorizing"], help="names, or folders of pipelines")
    parser.add_argument("--num-samples", type=int, default=1000, help="per seed")
    parser.add_argument("--fit-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8], help="held out")
    parser.add_argument("--num-inference-steps", dest="steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    args, began = parser.parse_args(), time.time()
    numbers = args.output / "results" / "detector.json"
    models = json.loads(numbers.read_text())["models"] if numbers.exists() else {}
    for model in args.models:
        fit, held = (
            [drawn(model, seed, args.num_samples, args.steps, args.guidance_scale, args.cache) for seed in seeds]
            for seeds in (args.fit_seeds, args.seeds)
        )
        (first, hits, subjects), (rest, held_out_hits, names) = joined(fit), joined(held)
        held_out = held_out_hits.numpy()
        detector = fit_detector(first, hits, subjects)
        predicted: dict[str, Any] = {
            "detector": detector.probability(rest).numpy(),
            f"detector, up to t = {EARLY:g}": detector.probability(rest, EARLY).numpy(),
        }
        found = {name: vars(score(values, held_out, names)) for name, values in predicted.items()}
        for name, (sign, values) in baselines(first, hits, rest).items():
            found[name] = vars(score(sign * values, held_out, names)) | {"sign": sign}
        share = {name: hits[[own == name for own in subjects]].double().mean().item() for name in set(names) & set(subjects)}
        values = np.array([share.get(name, hits.double().mean().item()) for name in names])
        found[f"share of its {kind(model)}"] = vars(score(values, held_out, names))
        name = short_name(model)
        models[name if args.guidance_scale is None else f"{name}, guidance {args.guidance_scale:g}"] = {
            "num_samples": args.num_samples,
            "fit_seeds": args.fit_seeds,
            "seeds": args.seeds,
            "steps": args.steps,
            "num_held_out": len(held_out),
            "memorized": float(held_out.mean()),
            "held_out": found,
            "cross_validated": dict(detector.scores),
        }
    seeds = sorted({seed for model in models.values() for seed in (*model["fit_seeds"], *model["seeds"])})
    result = {"num_samples": args.num_samples, "seeds": seeds, "models": models, "environment": environment(began)}
    write_page(args.output, "detector", page(models), result)


def page(models: dict[str, Any]) -> str:
    about = (
        "Plain Euler. Fitted on some seeds, judged on others. `detector` is `diffusers_kts.memorization.detector`, which "
        "keeps one latent, the last velocity. *low*: memorized samples have low values, as far as the seeds of the fit tell."
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
    header = ["score", "AUC (95 %)", "TPR at 1 % FPR", f"AUC within a {kind(name)}", "Brier"]
    best = held_out["detector"]["auc"]
    verdict = f"{'Reached' if best >= GOAL else 'Not reached'}: AUC {best:.3f}, goal {GOAL}."
    by_group = model["cross_validated"].get("groups")
    unseen = f" Cross-validated, each {kind(name)} held out whole: {by_group['auc']:.3f}." if by_group else ""
    fit, held = (", ".join(map(str, model[which])) for which in ("fit_seeds", "seeds"))
    drawn = f"{model['steps']} steps, {model['num_samples']} samples of each seed, fitted on {fit}, judged on {held}."
    memorized = f"{model['memorized']:.1%} of {model['num_held_out']} held-out samples memorized"
    return f"## {name}: {memorized}\n\n{drawn} {verdict}{unseen}\n\n{table(header, rows)}"


if __name__ == "__main__":
    main()
