"""Energies of a guided run against what its picture shows, within prompts, on the embedded text-to-image models.

    python -m benchmarks.science.energy_and_judge --data emoji64.npz

For each model and guidance scale: 100 prompts, 10 noises of each (the same for both models and all scales), 20 Euler steps,
as `text_to_image` draws them. Prompts are the first training captions of `emoji-memorizing` that `emoji` was trained on, too.
What counts was fixed before the run:

* Against the judge: the log-probability that `concept_judge`, trained on real pictures alone, gives to the concept asked for.
  Against memorization, of `emoji-memorizing`: d1 / d2 to its training pictures, in pixels; low is a copy.
* Rank correlations (Spearman) of ranks *within* each prompt, since prompts differ in both. Intervals and p-values are by
  leaving out groups of 5 prompts in turn (jackknife, Student's t): the samples of a prompt are no independent ones. Holm's
  adjustment over all correlations of the page.
* The paper reports that samples of higher energy show their subject better, and are more often memorized. So path energy
  "agrees" where its correlation with the judge is positive, or that with d1 / d2 negative, after Holm; "disagrees" for the
  other sign; "undecided" otherwise. The paper claims nothing of the other quantities: the page names the sign where Holm's
  test rejects.
* What is measured: path energy, displacement, excess, and of guided runs the energies of the conditional prediction along the
  guided path and of what guidance adds, ``(s - 1) (v_c - v_u)``.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kept import kept
from benchmarks.report import HERE, environment, table, write_page
from benchmarks.science.concept_judge import ConceptJudge, Features, as_pixels, views_of
from benchmarks.science.significance import LEVEL, Test, holm, jackknife, rank_correlation
from benchmarks.science.text_to_image import MODELS, STEPS, Painter
from diffusers_kts import KPECallback
from diffusers_kts.memorization.fraction import measure_memorization, ratio
from examples.train_text_to_image import full_caption, load_emoji, pairs_of

SAMPLED = ("emoji", "emoji-memorizing")
QUANTITIES = ("path energy", "displacement", "excess", "conditional energy", "guidance energy")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz file, or the folder with the two npm tarballs")
    parser.add_argument("--models", nargs="+", default=list(SAMPLED), choices=SAMPLED)
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--num-inference-steps", dest="steps", type=int, default=STEPS)
    parser.add_argument("--views", type=int, default=6, help="augmented views of each real picture for the judge")
    parser.add_argument("--cache", type=Path, default=HERE / "cache" / "energy_and_judge")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument(
        "--draw-only", action="store_true", help="fill the cache and stop, so that processes can share the work"
    )
    return parser.parse_args()


def draw(painter: Painter, prompts: list[str], scale: float, seed: int, steps: int) -> dict[str, Any]:
    """Pictures of the prompts (n, 64, 64, 3) uint8, and what was measured of each, (n,)."""
    energy = KPECallback(painter.pipeline, record_guidance=scale > 1)
    painter.more, painter.batch_size = {"callback_on_step_end": energy}, len(prompts)
    pictures, trace = painter(prompts, scale, seed, steps), energy.kpe
    assert trace is not None
    found = {"path energy": trace.path_energy.total, "displacement": trace.displacement, "excess": trace.excess}
    if scale > 1:
        found["conditional energy"] = trace.conditional_energy.total
        found["guidance energy"] = trace.guidance_energy.total
    return {"pictures": pictures, "found": found}


def correlations(found: dict[str, torch.Tensor], of: dict[str, torch.Tensor], prompts: torch.Tensor) -> Iterator[Test]:
    """Each quantity with each score, (n,) by prompt, within prompts; named "quantity, score"."""
    for name, x in found.items():
        for score, y in of.items():
            yield jackknife(
                f"{name}, {score}",
                lambda kept, x=x, y=y: rank_correlation("", x[kept], y[kept], prompts[kept]).change,
                len(x),
            )


def main() -> None:
    args = parse_args()
    began = time.time()
    data = load_emoji(args.data)
    pairs = {pair: rows[0] for pair, rows in pairs_of(data).items()}
    held_out = {tuple(pair) for pair in json.loads((MODELS / "emoji" / "held_out.json").read_text())}
    of_caption = {full_caption(*pair): pair for pair in pairs}
    with np.load(MODELS / "emoji-memorizing" / "training_images.npz") as archive:
        training, captions = archive["images"], archive["captions"].tolist()
    prompts = [caption for caption in captions if of_caption[caption] not in held_out][: args.num_prompts]

    drawn: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for model in args.models:
        painter = Painter(MODELS / model)
        for scale in args.guidance_scales:
            drawn[model, scale] = [
                kept(
                    args.cache,
                    f"{model}-{scale:g}-{seed}-{len(prompts)}-{args.steps}",
                    lambda s=scale, seed=seed, painter=painter: draw(painter, prompts, s, seed, args.steps),
                )
                for seed in args.seeds
            ]
    if args.draw_only:
        return

    concepts = sorted({concept for _, concept in pairs})
    pixels, generator, features = as_pixels(data["images"][list(pairs.values())]), torch.Generator().manual_seed(0), Features()
    real = kept(
        args.cache, f"views-{args.views}", lambda: views_of(pixels, features, painter.pipeline.vae, args.views, generator)
    )
    shown_by = torch.tensor([concepts.index(concept) for _, concept in pairs]).repeat(args.views)
    judge = kept(args.cache, f"judge-{args.views}", lambda: ConceptJudge(real, shown_by))
    asked = torch.tensor([concepts.index(of_caption[prompt][1]) for prompt in prompts])
    count, seeds = len(args.seeds), "+".join(map(str, args.seeds))
    own, which = asked.repeat_interleave(count), torch.arange(len(prompts)).repeat_interleave(count)

    cells: list[dict[str, Any]] = []
    tests: list[Test] = []
    for (model, scale), runs in drawn.items():
        # by prompt, so that the jackknife leaves out whole prompts
        pictures = as_pixels(np.stack([run["pictures"] for run in runs], 1).reshape(-1, *training.shape[1:]))
        found = {name: torch.stack([run["found"][name] for run in runs], 1).flatten() for name in runs[0]["found"]}
        seen = kept(
            args.cache,
            f"features-{model}-{scale:g}-{seeds}-{len(prompts)}-{args.steps}",
            lambda shown=pictures: features(shown),
        )
        log_probability = judge.log_probabilities(seen).gather(1, own[:, None])[:, 0]
        scores = {"judge": log_probability}
        cell = {"model": model, "guidance": scale, "mean_log_probability": float(log_probability.mean())}
        cell["mean"] = {name: float(values.mean()) for name, values in found.items()}
        if model == "emoji-memorizing":
            memorization = measure_memorization(pictures, as_pixels(training))
            scores["d1/d2"] = ratio(memorization.distances)
            cell["f_mem"] = float(memorization.is_memorized.float().mean())
        own_tests = list(correlations(found, scores, which))
        cell["tests"] = [test.name for test in own_tests]
        tests += [replace(test, name=f"{model}, {scale:g}, {test.name}") for test in own_tests]
        cells.append(cell)
    adjusted = holm(tests)
    for cell in cells:
        cell["tests"] = {name: vars(adjusted[f"{cell['model']}, {cell['guidance']:g}, {name}"]) for name in cell["tests"]}
    result = {"num_samples": len(prompts), "seeds": args.seeds, "cells": cells, "environment": environment(began)}
    write_page(args.output, "energy_and_judge", page(cells, args.steps), result)


def page(cells: list[dict[str, Any]], steps: int) -> str:
    about = (
        f"Rank correlations within prompts, {steps} Euler steps. *judge*: log-probability of the concept asked for, of a "
        "judge trained on real pictures. *d1/d2*: distance to the nearest training picture over that to the second nearest; "
        "low is a copy. *mean* is that of the log-probability (chance: -7.6), or F_mem. Intervals are 95 %, by leaving out "
        "prompts; p-values of the whole page after Holm: where that does not reject, a number is in brackets. Path energy is "
        "held against the paper, which reports + with the subject and - with d1/d2."
    )
    header = ["model", "guidance", "with", "mean", *QUANTITIES, "the paper's sign"]
    rows = []
    for cell in cells:
        for score, sign in (("judge", 1), ("d1/d2", -1)):
            tests = [cell["tests"].get(f"{name}, {score}") for name in QUANTITIES]
            if tests[0] is None:
                continue
            verdict = Test(**tests[0]).agrees_with(sign)
            mean = f"{cell['mean_log_probability']:.1f}" if score == "judge" else f"{cell['f_mem']:.1%}"
            rows.append([cell["model"], f"{cell['guidance']:g}", score, mean, *map(shown, tests), verdict])
    return f"{about}\n\n{table(header, rows)}\n\n{verdicts(cells)}"


def shown(test: dict[str, Any] | None) -> str:
    if test is None:
        return ""
    value = f"{test['change']:+.2f}"
    value = value if test["adjusted"] < LEVEL else f"({value})"
    return f"{value}, {test['low']:+.2f} to {test['high']:+.2f}"


def verdicts(cells: list[dict[str, Any]]) -> str:
    """Of each quantity, in how many rows it goes with the judge, or with copies."""
    lines = []
    for score, words in (("judge", "the judge's log-probability"), ("d1/d2", "d1/d2")):
        parts = []
        for name in QUANTITIES:
            tests = [cell["tests"][f"{name}, {score}"] for cell in cells if f"{name}, {score}" in cell["tests"]]
            rejected = [test["change"] > 0 for test in tests if test["adjusted"] < LEVEL]
            signs = " and ".join(
                f"{sign} in {rejected.count(up)}" for sign, up in (("+", True), ("-", False)) if up in rejected
            )
            if tests:
                parts.append(f"{name} {signs or 'none'} of {len(tests)}")
        if parts:
            lines.append(f"Verdict on {words}, rows in which the correlation is not chance: {'; '.join(parts)}.")
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
