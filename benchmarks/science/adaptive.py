r"""Gains by the sample, `KTSAdaptiveFlowMatchScheduler`, against a touchdown or landing of all samples alike.

    python -m benchmarks.science.adaptive --data fashion_mnist.npz --num-samples 150 \
        --models runs/memorizing-1024/pipeline runs/memorizing-512/pipeline

Every sampler starts from the same noises, drawn once and kept, so that a stopped run goes on. A setting is held against the
curve of touchdowns: the difference is its F_mem less the lowest F_mem that a touchdown, or plain sampling, reaches at no
higher Frechet distance. A rule wins if the interval of that difference is below 0 on every model. Writes the section of
``results/adaptive.md``, ``results/adaptive.json`` and the plot.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.fashion_mnist import Classifier, load_data
from benchmarks.science.frontier import Point, lowest
from benchmarks.science.judge import CELLS, Judge
from benchmarks.science.laboratory import NUM_CLASSES, Draw, Laboratory, Sampler, integrate, load_model
from diffusers_kts import KTSAdaptiveFlowMatchScheduler
from diffusers_kts.features.frechet import frechet_distance
from diffusers_kts.flow_coordinates import ON_GRID
from diffusers_kts.memorization.fraction import measure_memorization

RESAMPLES = 100
PLAIN, TOUCHDOWN, LANDING = "plain", "touchdown", "KTS, landing"
MEMORIZED, RANDOM = "touchdown of the memorized, known afterwards", "touchdown of samples taken at random"
CHOSEN = (0.6, 0.5, 0.4)  # flow times at which the chosen of the two controls touch down
TIMES = (0.3, 0.4, 0.5, 0.6, 0.7)
STYLES = (
    ("#000000", "*"), ("#D55E00", "s-"), ("#0072B2", "o-"), ("#009E73", "v--"), ("#56B4E9", "P:"), ("#CC79A7", "^--"),
    ("#E69F00", "d-."), ("#8C510A", "X-."), ("#999999", "<:"), ("#D55E00", "x"), ("#999999", "+"),
)  # fmt: skip


@dataclass(frozen=True)
class AdaptiveSampler(Sampler):
    """A sampler with one of the rules of `KTSAdaptiveFlowMatchScheduler`."""

    energy_budget: float | None = None
    max_gain: float = 1.0
    turning: float | None = None
    turning_from: float = 0.5
    turning_action: str = "touchdown"

    def scheduler(self) -> KTSAdaptiveFlowMatchScheduler:
        settings = asdict(self)
        for name in ("steps", "grid", "solver"):
            del settings[name]
        scheduler = KTSAdaptiveFlowMatchScheduler(**settings)
        scheduler.set_timesteps(sigmas=self.sigmas())
        return scheduler


class AdaptiveLaboratory(Laboratory):
    """A rule goes by the whole run, so that no part of it can be shared with other samplers."""

    def _integrate(self, sampler: Sampler, seed: int, block: range) -> Draw:
        if not isinstance(sampler, AdaptiveSampler):
            return super()._integrate(sampler, seed, block)
        return integrate(self.model.network, sampler, torch.tensor(block) % NUM_CLASSES, Draw.start(self.noise(seed, block)))


def families(steps: int) -> dict[str, dict[str, Sampler]]:
    """Samplers by family and label, each family in the order of its curve."""
    plain, rule = Sampler(steps=steps), AdaptiveSampler(steps=steps)

    def budget(values: tuple[float, ...], **more: Any) -> dict[str, Sampler]:
        return {f"{value:g}": replace(rule, energy_budget=value, **more) for value in values}

    def turning(values: tuple[float, ...], **more: Any) -> dict[str, Sampler]:
        return {f"{value:g}": replace(rule, turning=value, **more) for value in values}

    return {
        PLAIN: {"": plain},
        TOUCHDOWN: {f"t_d {t:g}": replace(plain, touchdown=t) for t in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)},
        LANDING: {f"0 / {b:g}": replace(plain, beta_0=b) for b in (0.01, 0.02, 0.03)},
        "budget, cap": budget((0.8, 0.75, 0.7)),
        "budget, cap, touchdown .7": budget((0.8, 0.75), touchdown=0.7),
        "budget, target, max_gain 1.2": budget((0.85, 0.75), max_gain=1.2),
        "turning from .5, touchdown": turning((0.65, 0.6, 0.55)),
        "turning from .4, touchdown": turning((0.6, 0.55), turning_from=0.4),
        "turning from .5, landing .05": turning((0.6,), turning_action="landing", beta_0=0.05),
    }


def controls(points: list[Draw], training: torch.Tensor) -> dict[str, dict[str, list[torch.Tensor]]]:
    """Images by family and label, of plain draws of which the chosen samples touch down."""
    hits = [measure_memorization(draw.images, training).is_memorized for draw in points]
    generator = torch.Generator().manual_seed(0)
    as_many = [hit[torch.randperm(len(hit), generator=generator)] for hit in hits]
    found: dict[str, dict[str, list[torch.Tensor]]] = {MEMORIZED: {}, RANDOM: {}}
    for t_d in CHOSEN:
        for family, chosen in ((MEMORIZED, hits), (RANDOM, as_many)):
            found[family][f"t_d {t_d:g}"] = [
                replace(draw, x=torch.where(rows.reshape(-1, 1, 1, 1), draw.estimates[t_d], draw.x)).images
                for draw, rows in zip(points, chosen, strict=True)
            ]
    return found


def measure(
    laboratory: Laboratory, judge: Judge, seeds: list[int], wanted: dict[str, dict[str, Sampler]]
) -> dict[str, list[Point]]:
    training, found = laboratory.model.training, {}
    for family, samplers in wanted.items():
        found[family] = []
        for label, sampler in samplers.items():
            images = [laboratory.draw(sampler, seed).images for seed in seeds]
            found[family].append(Point(label, images, judge(images, training), sampler.network_calls))
    (plain,) = wanted[PLAIN].values()
    draws = [laboratory.draw(plain, seed) for seed in seeds]
    if set(CHOSEN) <= set(draws[0].estimates):
        for family, by_label in controls(draws, training).items():
            found[family] = [Point(label, images, judge(images, training), 0) for label, images in by_label.items()]
    return found


def against_touchdown(
    found: dict[str, list[Point]], judge: Judge, training: torch.Tensor
) -> dict[tuple[str, str], np.ndarray]:
    """F_mem of every point less that of the touchdowns at no higher FD: first of all samples, then of resamples of the noises,
    the same for every sampler. NaN where no touchdown has so low an FD."""
    points = [(family, point) for family, part in found.items() for point in part]
    features = [[judge.classifier.features(images) for images in p.images] for _, p in points]
    hits = [[measure_memorization(images, training).is_memorized.double() for images in p.images] for _, p in points]
    curve = [i for i, (family, _) in enumerate(points) if family in (PLAIN, TOUCHDOWN)]
    rng, differences = np.random.default_rng(0), []
    for resample in range(RESAMPLES + 1):
        rows = [rng.integers(len(part), size=len(part)) if resample else np.arange(len(part)) for part in features[0]]
        places = [
            (
                float(np.mean([frechet_distance(part[row], judge.reference) for part, row in zip(f, rows, strict=True)])),
                float(np.mean([part[row].mean() for part, row in zip(h, rows, strict=True)])),
            )
            for f, h in zip(features, hits, strict=True)
        ]
        reached = [lowest([places[i] for i in curve], fd) for fd, _ in places]
        differences.append([np.nan if r is None else f - r for (_, f), r in zip(places, reached, strict=True)])
    columns = np.array(differences).T
    return {(family, point.label): column for (family, point), column in zip(points, columns, strict=True)}


def told_by(laboratory: Laboratory, plain: Sampler, seeds: list[int]) -> list[dict[str, float]]:
    """AUC against being memorized at last, of what is known at a flow time: turning, energy so far, and how much the data
    estimate moved in the first half of the time against the second."""
    draws = [laboratory.draw(plain, seed) for seed in seeds]
    hits = torch.cat([measure_memorization(d.images, laboratory.model.training).is_memorized for d in draws]).numpy()
    trace, rows = Draw.cat(draws).trace(plain), []
    for t in TIMES:
        i = int((trace.t[:-1] < t - ON_GRID).sum())
        early, late = trace.estimate_change(0, t / 2), trace.estimate_change(t / 2, t)
        scores = {"turning": trace.turning[:, i], "energy": trace.power[:, :i].sum(1), "settling": (early / late).log()}
        rows.append({"t": t} | {name: roc_auc_score(hits, score.double().numpy()) for name, score in scores.items()})
    return rows


def plot(results: dict[str, dict[str, list[Point]]], path: Path) -> None:
    """F_mem with its interval against FD, a panel per model."""
    figure = Figure(figsize=(6.5 * len(results), 5.5), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for (family, points), (color, style) in zip(found.items(), STYLES, strict=False):
            fd, f_mem = np.array([p.place for p in points]).T
            bounds = np.array([[p.verdict.f_mem.low, p.verdict.f_mem.high] for p in points]).T
            upright = 100 * np.abs(bounds - f_mem)
            axes.errorbar(fd, 100 * f_mem, upright, fmt=style, color=color, label=family, markersize=6, elinewidth=0.5)
        axes.set(xlabel="Frechet distance (classifier features)", ylabel="F_mem, %", title=name, ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def describe(
    name: str, found: dict[str, list[Point]], differences: dict[tuple[str, str], np.ndarray], told: list[dict[str, float]]
) -> tuple[str, list[dict[str, Any]]]:
    rows, points = [], []
    for family, part in found.items():
        for point in part:
            column = differences[family, point.label]
            difference = None
            if family not in (PLAIN, TOUCHDOWN) and np.isfinite(column[0]) and np.isfinite(column[1:]).any():
                low, high = np.nanquantile(column[1:], (0.025, 0.975))
                difference = {"value": float(column[0]), "low": float(low), "high": float(high)}
            cell = "" if difference is None else "{value:.1%} ({low:.1%} to {high:.1%})".format(**difference)
            rows.append([family, point.label, *point.verdict.cells(), cell])
            points.append({"family": family, "setting": point.label, **point.verdict.to_dict(), "difference": difference})
    header = ["family", "setting", *CELLS, "F_mem less a touchdown's (95 %)"]
    known = table(
        ["known at t =", "turning", "energy so far", "settling so far"],
        [[f"{row['t']:g}", *(f"{row[score]:.2f}" for score in ("turning", "energy", "settling"))] for row in told],
    )
    return f"## {name}\n\n{table(header, rows)}\n\nAUC of what is known at a flow time of plain sampling:\n\n{known}", points


def verdict(models: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """A sentence, and the settings that win."""
    by_setting: dict[tuple[str, str], list[dict[str, float] | None]] = {}
    for model in models:
        for point in model["points"]:
            if point["family"].startswith(("budget", "turning")):
                by_setting.setdefault((point["family"], point["setting"]), []).append(point["difference"])
    wins = [
        f"{family} {setting}"
        for (family, setting), found in by_setting.items()
        if all(difference is not None and difference["high"] < 0 for difference in found)
    ]
    if wins:
        return f"Verdict: less memorized than touchdowns at equal FD, on every model: {', '.join(wins)}.", wins
    lower = sum(d is not None and d["high"] < 0 for found in by_setting.values() for d in found)
    higher = sum(d is not None and d["low"] > 0 for found in by_setting.values() for d in found)
    return (
        "Verdict: no setting of a rule beats the touchdown of all samples on every model, so there is no preset of them. Of "
        f"{sum(map(len, by_setting.values()))} comparisons ({len(by_setting)} settings, {len(models)} models), F_mem at equal "
        f"FD is lower in {lower} and higher in {higher} (95 %, not corrected for their number)."
    ), wins


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=["memorizing"], help="names, folders or snapshots")
    options.add_argument("--num-inference-steps", dest="steps", type=int, default=100)
    options.add_argument("--families", nargs="+", help=f"by default all: {', '.join(families(100))}")
    args, began = options.parse_args(), time.time()
    wanted = families(args.steps)
    if args.families:
        wanted = {name: samplers for name, samplers in wanted.items() if name in (PLAIN, TOUCHDOWN, *args.families)}
    data, loaded = load_data(args.data), []
    for path in args.models:
        loaded.append(AdaptiveLaboratory(load_model(path, data, args.num_images), args.num_samples, args.cache))
    for laboratory in loaded:
        for samplers in wanted.values():
            for sampler in samplers.values():
                for seed in args.seeds:
                    laboratory.draw(sampler, seed)
    if args.draw_only:
        return
    judge = Judge(Classifier(data, args.epochs, args.cache), data.x_test)
    found = {lab.model.name: measure(lab, judge, args.seeds, wanted) for lab in loaded}
    plot(found, args.output / "results" / "adaptive.png")
    texts, models = [], []
    for lab in loaded:
        name, training = lab.model.name, lab.model.training
        told = told_by(lab, next(iter(wanted[PLAIN].values())), args.seeds)
        text, points = describe(name, found[name], against_touchdown(found[name], judge, training), told)
        texts.append(text)
        models.append({"model": name, "digest": lab.model.digest, "points": points, "known_at": told})
    sentence, wins = verdict(models)
    about = (
        f"{args.steps} steps. F_mem of all seeds together with the exact interval; FD is the mean of the seeds; spread: "
        "highest less lowest seed. Last column: F_mem less the lowest that a touchdown (or plain sampling) reaches at no "
        "higher FD, read off the broken line through them; bootstrap of the noises; empty where none has so low an FD. "
        "Settings are the energy budget per dimension, or the threshold of the turning, chosen on other noises of the same "
        "models. Two controls pick the samples that touch down: the memorized ones, which nobody knows beforehand, as a bound "
        "on what a rule of this kind can do; and as many at random."
    )
    result = {
        "num_samples": args.num_samples,
        "seeds": args.seeds,
        "environment": environment(began),
        "wins": wins,
        "models": models,
    }
    picture = "![Share memorized against Frechet distance, gains by the sample](adaptive.png)"
    write_page(args.output, "adaptive", "\n\n".join([about, sentence, picture, *texts]), result)


if __name__ == "__main__":
    main()
