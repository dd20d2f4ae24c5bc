r"""Quality against memorization: KTS, touchdown, and plain Euler at fewer steps, on several models.

    python -m benchmarks.science.frontier --data fashion_mnist.npz \
        --models runs/memorizing/snapshots/update-029000.safetensors ...

Every sampler starts from the same noises. A family of samplers is a curve in the plane of Frechet distance (FD, classifier
features, to the real test images) and F_mem; the question is how low F_mem gets at the FD that the paper's strongest setting,
KTS with alpha_0 = 0 and beta_0 = 0.02, pays. Writes ``results/frontier.md``, ``results/frontier.json`` and the plot.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.fashion_mnist import Classifier, load_data
from benchmarks.science.judge import CELLS, Judge, Verdict
from benchmarks.science.laboratory import TOUCHDOWNS, Draw, Laboratory, Sampler, load_model
from diffusers_kts.features.frechet import frechet_distance
from diffusers_kts.memorization.fraction import measure_memorization

PLAIN = Sampler()
REFERENCE = "0 / 0.02"
LANDING, TOUCHDOWN, FEWER, BY_SAMPLE = "KTS, landing", "touchdown", "plain Euler, fewer steps", "touchdown of the turning"
FEWER_STEPS = (50, 20, 10, 5)
SHARES = (0.25, 0.5, 0.75)  # of samples that touch down early under the per-sample rule
TURNS_BEFORE = 0.4  # flow time at which the per-sample rule decides
RESAMPLES = 40


@dataclass(frozen=True)
class Point:
    """A sampler on the plane: its images by seed, what they are worth, and network calls per sample."""

    label: str
    images: list[torch.Tensor]
    verdict: Verdict
    network_calls: float

    @property
    def place(self) -> tuple[float, float]:
        return self.verdict.frechet, self.verdict.f_mem.fraction


def families(steps: int) -> dict[str, dict[str, Sampler]]:
    """Samplers by family and label, each family in the order of its curve."""
    plain = replace(PLAIN, steps=steps)
    marks = TOUCHDOWNS[::-1]

    def kts(alpha_0: float, betas: Sequence[float], **more: Any) -> dict[str, Sampler]:
        return {f"{alpha_0:g} / {b:g}": replace(plain, alpha_0=alpha_0, beta_0=b, **more) for b in betas}

    launched = replace(plain, alpha_0=0.02)
    return {
        LANDING: kts(0, (0.01, 0.02, 0.03, 0.05)),
        FEWER: {f"{n} steps": replace(plain, steps=max(1, n * steps // 100)) for n in FEWER_STEPS},
        TOUCHDOWN: {f"t_d {t:g}": replace(plain, touchdown=t) for t in marks},
        "KTS, launch .02": kts(0.02, (0, 0.02)),
        "touchdown, launch .02": {f"t_d {t:g}": replace(launched, touchdown=t) for t in marks},
        "KTS, launch .01": kts(0.01, (0.01,)),
        **{
            f"touchdown, {share} of the steps": {
                f"t_d {t:g}": replace(plain, touchdown=t, steps=max(1, steps // divisor)) for t in (0.8, 0.7, 0.6, 0.5)
            }
            for share, divisor in (("a fifth", 5), ("a tenth", 10))
        },
        "two steps from tau_split on, a fifth of the steps": {
            f"tau_split {tau:g}": replace(plain, tau_split=tau, grid="coarse", steps=max(1, steps // 5))
            for tau in (0.6, 0.5, 0.4)
        },
        "KTS, linear landing": kts(0, (0.2, 0.4), late_schedule="linear"),
        "KTS, tau_split .8": kts(0, (0.05,), tau_split=0.8),
        # so many steps that the network is called as often as without a touchdown
        "touchdown, equal calls": {
            f"t_d {t:g}": replace(plain, touchdown=t, steps=int((steps - 1) / t + 1e-9)) for t in (0.7,)
        },
    }


def touch_down_the_turning(plain: Draw, sampler: Sampler, t_d: float, share: float) -> torch.Tensor:
    """Images where the ``share`` of samples whose data estimate moved most before `TURNS_BEFORE` touch down at ``t_d``."""
    t = 1 - sampler.scheduler().sigmas[:-1]
    moved = ((1 - t) * plain.turn)[:, t < TURNS_BEFORE].sum(1)
    early = (moved >= moved.quantile(1 - share)).reshape(-1, 1, 1, 1)
    return replace(plain, x=torch.where(early, plain.estimates[t_d], plain.x)).images


def measure(
    laboratory: Laboratory, judge: Judge, seeds: list[int], steps: int, wanted: dict[str, dict[str, Sampler]]
) -> dict[str, list[Point]]:
    def point(label: str, images: list[torch.Tensor], calls: float) -> Point:
        return Point(label, images, judge(images, laboratory.model.training), calls)

    plain = replace(PLAIN, steps=steps)
    draws = [laboratory.draw(plain, seed) for seed in seeds]
    start = point("plain", [draw.images for draw in draws], plain.network_calls)
    found = {}
    for family, samplers in wanted.items():
        found[family] = [start] if family.startswith(("touchdown", LANDING, FEWER)) else []
        for label, sampler in samplers.items():
            images = [laboratory.draw(sampler, seed).images for seed in seeds]
            found[family].append(point(label, images, sampler.network_calls))
    whole, cut = plain.network_calls, replace(plain, touchdown=0.5).network_calls
    found[BY_SAMPLE] = [start]
    for share in SHARES:
        images = [touch_down_the_turning(draw, plain, 0.5, share) for draw in draws]
        found[BY_SAMPLE].append(point(f"{share:.0%} at t_d 0.5", images, share * cut + (1 - share) * whole))
    return found


def lowest(places: Sequence[tuple[float, float]], limit: float) -> float | None:
    """The lowest F_mem on the broken line through (FD, F_mem) ``places`` where FD is at most ``limit``; None if nowhere."""
    reached = [f for fd, f in places if fd <= limit]
    for (fd, f), (next_fd, next_f) in itertools.pairwise(places):
        if (fd - limit) * (next_fd - limit) < 0:
            reached.append(f + (next_f - f) * (limit - fd) / (next_fd - fd))
    return min(reached, default=None)


def reference(found: dict[str, list[Point]]) -> Point:
    return next(point for point in found[LANDING] if point.label == REFERENCE)


def bootstrap_ratio(found: dict[str, list[Point]], judge: Judge, training: torch.Tensor) -> list[float]:
    """Touchdown's lowest F_mem at the FD of the reference, over the reference's F_mem: one number per resample of the noises,
    the same noises for every sampler."""
    points, rng = [*found[TOUCHDOWN], reference(found)], np.random.default_rng(0)
    features = [[judge.classifier.features(images) for images in p.images] for p in points]
    hits = [[measure_memorization(images, training).is_memorized.double() for images in p.images] for p in points]
    ratios = []
    for _ in range(RESAMPLES):
        rows = [rng.integers(len(part), size=len(part)) for part in features[0]]
        places = [
            (
                float(np.mean([frechet_distance(part[row], judge.reference) for part, row in zip(f, rows, strict=True)])),
                float(np.mean([part[row].mean() for part, row in zip(h, rows, strict=True)])),
            )
            for f, h in zip(features, hits, strict=True)
        ]
        *curve, (limit, f_mem) = places
        reached = lowest(curve, limit)
        if reached is not None and f_mem > 0:
            ratios.append(reached / f_mem)
    return ratios


def plot(results: dict[str, dict[str, list[Point]]], path: Path) -> None:
    """F_mem against FD, a panel per model: intervals of F_mem upright, the seeds' range of FD across."""
    shown = {
        LANDING: ("#0072B2", "o-"),
        "KTS, linear landing": ("#56B4E9", "v-"),
        "KTS, launch .02": ("#CC79A7", "P:"),
        TOUCHDOWN: ("#D55E00", "s-"),
        "touchdown, launch .02": ("#E69F00", "d:"),
        "touchdown, a fifth of the steps": ("#999999", "x--"),
        "touchdown, a tenth of the steps": ("#000000", "+--"),
        BY_SAMPLE: ("#F0E442", "^--"),
        FEWER: ("#009E73", "*-."),
    }
    figure = Figure(figsize=(6.5 * len(results), 5.5), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for family, (color, style) in shown.items():
            if family not in found:
                continue
            verdicts = [point.verdict for point in found[family]]
            x, y = np.array([v.frechet for v in verdicts]), np.array([v.f_mem.fraction for v in verdicts])
            across = [x - [min(v.frechet_by_seed) for v in verdicts], [max(v.frechet_by_seed) for v in verdicts] - x]
            upright = [y - [v.f_mem.low for v in verdicts], [v.f_mem.high for v in verdicts] - y]
            axes.errorbar(
                x,
                100 * y,
                100 * np.array(upright),
                np.array(across),
                style,
                color=color,
                label=family,
                markersize=5,
                elinewidth=0.5,
            )
        for point in found[TOUCHDOWN][1:]:
            axes.annotate(
                point.label[4:], (point.place[0], 100 * point.place[1]), (4, 4), textcoords="offset points", fontsize=7
            )
        start, mark = found[TOUCHDOWN][0], reference(found)
        axes.plot(start.place[0], 100 * start.place[1], "k*", markersize=13, label="plain Euler")
        axes.axvline(mark.place[0], color="0.5", linewidth=0.8, linestyle=":", label=f"FD of KTS {REFERENCE}")
        limit = max(p.place[0] for p in found[LANDING] + found[TOUCHDOWN][:-1])
        axes.set(xlim=(0.95 * min(p.place[0] for f in shown if f in found for p in found[f]), 1.1 * limit), ylim=(0, None))
        axes.set(xlabel="Frechet distance (classifier features)", ylabel="F_mem, %", title=name)
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def describe(name: str, found: dict[str, list[Point]], ratios: list[float]) -> tuple[str, dict[str, Any]]:
    mark, rows, best = reference(found), [], {}
    limit, f_mem = mark.place
    for family, points in found.items():
        best[family] = lowest([point.place for point in points], limit)
        for point in points:
            rows.append([family, point.label, f"{point.network_calls:.0f}", *point.verdict.cells()])
    reached = best[TOUCHDOWN]
    low, high = np.quantile(ratios, (0.025, 0.975)) if ratios else (np.nan, np.nan)
    ratio = None if reached is None or not f_mem else reached / f_mem
    verdict = (
        "not measurable here"
        if ratio is None
        else "met"
        if high <= 0.5
        else "met, within the interval"
        if ratio <= 0.5
        else "missed"
    )
    order = sorted((value, family) for family, value in best.items() if value is not None)
    lines = [
        f"## {name}",
        "",
        table(["family", "setting", "network calls", *CELLS], rows),
        "",
        f"Verdict: at the FD of KTS {REFERENCE} ({limit:.2f}, F_mem {f_mem:.1%}) touchdown reaches F_mem "
        + ("nothing" if reached is None else f"{reached:.1%}")
        + ("" if ratio is None else f", {ratio:.2f} of KTS's (95 % {low:.2f} to {high:.2f})")
        + f"; goal, at most half: {verdict}. Lowest F_mem at that FD by family: "
        + ", ".join(f"{family} {value:.1%}" for value, family in order)
        + ".",
    ]
    result = {
        "points": [
            {"family": f, "setting": p.label, "network_calls": p.network_calls, **p.verdict.to_dict()}
            for f, ps in found.items()
            for p in ps
        ],
        "goal": {"fd": limit, "kts_f_mem": f_mem, "touchdown_f_mem": reached, "ratio": ratio, "verdict": verdict},
        "lowest_f_mem_at_that_fd": best,
    }
    if ratios:
        result["goal"]["interval"] = [float(low), float(high)]
    return "\n".join(lines), result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=["memorizing"], help="names, folders or snapshots")
    options.add_argument("--num-inference-steps", dest="steps", type=int, default=100)
    options.add_argument("--families", nargs="+", help=f"by default all: {', '.join(families(100))}")
    args, began = options.parse_args(), time.time()
    wanted = families(args.steps)
    if args.families:
        wanted = {name: samplers for name, samplers in wanted.items() if name in (LANDING, TOUCHDOWN, *args.families)}
    data = load_data(args.data)
    laboratories = [Laboratory(load_model(path, data, args.num_images), args.num_samples, args.cache) for path in args.models]
    for laboratory in laboratories:
        for sampler in (
            replace(PLAIN, steps=args.steps),
            *(s for family in wanted.values() for s in family.values()),
        ):
            for seed in args.seeds:
                laboratory.draw(sampler, seed)
    if args.draw_only:
        return
    judge = Judge(Classifier(data, args.epochs, args.cache), data.x_test)
    found = {lab.model.name: measure(lab, judge, args.seeds, args.steps, wanted) for lab in laboratories}
    plot(found, args.output / "results" / "frontier.png")
    texts, models = [], []
    for laboratory in laboratories:
        name, training = laboratory.model.name, laboratory.model.training
        text, result = describe(name, found[name], bootstrap_ratio(found[name], judge, training))
        texts.append(text)
        models.append({"model": name, "digest": laboratory.model.digest, "training_images": len(training), **result})
    about = (
        "F_mem of all seeds together with the exact interval; FD is the mean of the seeds; spread: highest less lowest seed. "
        f'"{BY_SAMPLE}": only the samples whose data estimate moved most before t = {TURNS_BEFORE} touch down; others go on. '
        "A family's lowest F_mem at an FD is read off the broken line through its points.\n\n![frontier](frontier.png)"
    )
    result = {"num_samples": args.num_samples, "seeds": args.seeds, "environment": environment(began), "models": models}
    write_page(args.output, "frontier", "\n\n".join([about, *texts]), result)


if __name__ == "__main__":
    main()
