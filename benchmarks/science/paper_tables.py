"""The experiments of arXiv 2602.07928, run again on Fashion-MNIST models that anyone can train.

    python -m benchmarks.science.paper_tables --data fashion_mnist.npz --model runs/memorizing/pipeline \\
        --snapshots runs/memorizing/snapshots/*

Beside every F_mem of KTS stand its three controls (``diffusers_kts.memorization.controls``): the same net displacement spread
evenly, the plain sample with equal noise, and the shaped sample finished with its missing displacement. All samplers of a
table start from the same noises. The paper's numbers are second-hand: "reported".
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.fashion_mnist import Classifier, load_data
from benchmarks.science.judge import Judge, Verdict
from benchmarks.science.laboratory import NUM_CLASSES, Laboratory, Sampler, load_model
from diffusers_kts.gain import SCHEDULES
from diffusers_kts.memorization.controls import finished, spread_evenly, with_equal_noise
from diffusers_kts.memorization.fraction import PairedDifference, measure_memorization, memorized_fraction, paired_difference
from diffusers_kts.memorization.neighbors import nearest_neighbors

PLAIN = Sampler()
CELEBA = {(0, 0): (16.68, 37.34), (0.01, 0.01): (14.35, 31.22), (0.02, 0): (11.27, 36.78), (0, 0.02): (86.56, 19.36)}
#        (alpha_0, beta_0): reported FID and F_mem in per cent
TAU = {0.2: 60.31, 0.4: 48.58, 0.6: 14.35, 0.8: 21.07}  # reported FID
POINTS_LOWER = (6, 10)  # reported drop of F_mem for every solver, grid and number of network calls
SUPPORT = {"kNN": -0.65, "KDE": -0.64}  # reported Spearman correlation with KPE, CIFAR-10
SUPPORT_NEIGHBOR = 10
GROUPS = 3
TABLES = ("main", "tau_split", "shapes", "solvers", "training", "support", "class_score")


@dataclass(frozen=True)
class Comparison:
    """A sampler beside plain sampling with the same solver, grid and number of calls, and its controls."""

    sampler: Sampler
    verdict: Verdict
    plain: Verdict
    difference: PairedDifference  # of F_mem, ours less plain
    controls: dict[str, Verdict]

    @property
    def frechet_change(self) -> list[float]:
        return [ours - plain for ours, plain in zip(self.verdict.frechet_by_seed, self.plain.frechet_by_seed, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.sampler),
            "sampler": self.verdict.to_dict(),
            "plain": self.plain.to_dict(),
            "f_mem_difference": asdict(self.difference),
            "controls": {name: verdict.to_dict() for name, verdict in self.controls.items()},
        }


class Bench:
    """A model on the bench: samplers compared with plain sampling, every draw kept."""

    def __init__(self, laboratory: Laboratory, judge: Judge, seeds: list[int]) -> None:
        self.laboratory, self.judge, self.seeds = laboratory, judge, seeds

    def compare(self, sampler: Sampler, even: bool = False) -> Comparison:
        """``even``: whether to draw the control that is a run of its own."""
        training, levels = self.laboratory.model.training, sampler.levels
        plain, ours = ([self.laboratory.draw(s, seed) for seed in self.seeds] for s in (without(sampler), sampler))
        verdicts = [self.judge([draw.images for draw in draws], training) for draws in (ours, plain)]
        hits = [torch.cat([measure_memorization(d.images, training).is_memorized for d in draws]) for draws in (ours, plain)]
        controls: dict[str, Verdict] = {}
        if sampler != without(sampler):
            generator = torch.Generator().manual_seed(0)
            noisy = [replace(p, x=with_equal_noise(p.x, s.x, generator)) for p, s in zip(plain, ours, strict=True)]
            done = [replace(draw, x=finished(draw.x, draw.v, sampler.gains, levels)) for draw in ours]
            if even:
                controls["evenly"] = self.judge.sampler(self.laboratory, evenly(sampler), self.seeds)
            controls |= {
                "equal noise": self.judge([draw.images for draw in noisy], training),
                "finished": self.judge([draw.images for draw in done], training),
            }
        return Comparison(sampler, *verdicts, paired_difference(*hits), controls)


def without(sampler: Sampler) -> Sampler:
    """The same solver, grid and number of steps without shaping."""
    return replace(PLAIN, steps=sampler.steps, grid=sampler.grid, solver=sampler.solver)


def evenly(sampler: Sampler) -> Sampler:
    """The control with the same net displacement and a constant gain."""
    settings = spread_evenly(sampler.gains, sampler.levels)
    return replace(sampler, **{name: value for name, value in settings.items() if name != "k"})


@dataclass(frozen=True)
class Plan:
    """The samplers of every table, by the first cell of their row."""

    steps: int
    network_calls: tuple[int, ...]

    @property
    def balanced(self) -> Sampler:
        return replace(PLAIN, alpha_0=0.01, beta_0=0.01, steps=self.steps)

    def celeba(self) -> dict[tuple[float, float], Sampler]:
        return {(a, b): replace(PLAIN, alpha_0=a, beta_0=b, steps=self.steps) for a, b in CELEBA}

    def tau_split(self) -> dict[float, Sampler]:
        return {tau: replace(self.balanced, tau_split=tau) for tau in TAU}

    def shapes(self) -> dict[tuple[str, str], Sampler]:
        shapes = [(early, late) for early in SCHEDULES for late in SCHEDULES]
        return {(early, late): replace(self.balanced, early_schedule=early, late_schedule=late) for early, late in shapes}

    def solvers(self) -> dict[tuple[str, str, int], Sampler]:
        setups = [(s, grid, n) for s in ("euler", "heun") for grid in ("uniform", "cosine") for n in self.network_calls]
        return {(s, grid, n): replace(self.balanced, solver=s, grid=grid, steps=n) for s, grid, n in setups}


def direction(low: float, high: float) -> str:
    """What an interval of a change says."""
    return "falls" if high < 0 else "rises" if low > 0 else "undecided"


def agreement(reported: float, low: float, high: float) -> str:
    found = direction(low, high)
    return "undecided" if found == "undecided" else "agrees" if (reported < 0) == (found == "falls") else "disagrees"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


HEADER = ["F_mem % (95 %)", "seeds", "change, points (95 %)", "FD", "seeds", "controls: F_mem % / FD", "class accuracy %"]


def cells(c: Comparison) -> list[str]:
    f, d, seeds, frechet = c.verdict.f_mem, c.difference, c.verdict.f_mem_by_seed, c.verdict.frechet_by_seed
    return [
        f"{percent(f.fraction)} ({percent(f.low)} to {percent(f.high)})",
        f"{percent(min(seeds))} to {percent(max(seeds))}",
        f"{percent(d.difference)} ({percent(d.low)} to {percent(d.high)})" if c.controls else "",
        f"{c.verdict.frechet:.2f}",
        f"{min(frechet):.2f} to {max(frechet):.2f}",
        ", ".join(f"{name} {percent(v.f_mem.fraction)} / {v.frechet:.2f}" for name, v in c.controls.items()),
        percent(c.verdict.accuracy),
    ]


def celeba(found: dict[tuple[float, float], Comparison]) -> str:
    (plain_fid, plain_f), rows, verdicts = CELEBA[0, 0], [], []
    for (alpha_0, beta_0), c in found.items():
        (fid, f_mem), name, agree = CELEBA[alpha_0, beta_0], f"{alpha_0:g} / {beta_0:g}", ["", ""]
        if c.controls:
            agree = [
                agreement(f_mem - plain_f, c.difference.low, c.difference.high),
                agreement(fid - plain_fid, min(c.frechet_change), max(c.frechet_change)),
            ]
            beyond = min(v.f_mem.fraction for v in c.controls.values()) - c.verdict.f_mem.fraction
            verdicts.append(
                f"{name}: F_mem {agree[0]}, FD {agree[1]}, F_mem {percent(beyond)} points below its lowest control"
            )
        rows.append([name, *cells(c), f"{f_mem:g} / {fid:g}", *agree])
    header = ["alpha_0 / beta_0", *HEADER, "reported F_mem / FID", "F_mem", "FD"]
    return (
        "## The main table (reported: CelebA 32x32)\n\n"
        + table(header, rows)
        + f"\n\nVerdict, against the direction reported: {'; '.join(verdicts)}."
    )


def tau_split(found: dict[float, Comparison]) -> str:
    best = min(found, key=lambda tau: found[tau].verdict.frechet)
    rank = spearmanr(list(TAU.values()), [c.verdict.frechet for c in found.values()]).statistic
    rows = [[f"{tau:g}", *cells(c), TAU[tau]] for tau, c in found.items()]
    return (
        "## tau_split, at alpha_0 = beta_0 = 0.01\n\n"
        + table(["tau_split", *HEADER, "reported FID"], rows)
        + f"\n\nVerdict: best FD reported at {min(TAU, key=TAU.__getitem__):g}, ours at {best:g}; Spearman correlation of our "
        f"FD with the reported FID over the four: {rank:.2f}."
    )


def shapes(found: dict[tuple[str, str], Comparison]) -> str:
    rows = [[f"{early} / {late}", *cells(c)] for (early, late), c in found.items()]
    lowest = min(found, key=lambda shape: found[shape].verdict.f_mem.fraction)
    finest = min(found, key=lambda shape: found[shape].verdict.frechet)
    return (
        "## Shapes of launch and landing, at alpha_0 = beta_0 = 0.01\n\n"
        + table(["launch / landing", *HEADER], rows)
        + f"\n\nVerdict: lowest F_mem with {' / '.join(lowest)}, lowest FD with {' / '.join(finest)}; no reported numbers at "
        "hand."
    )


def solvers(found: dict[tuple[str, str, int], Comparison]) -> str:
    fell = sum(c.difference.high < 0 for c in found.values())
    low, high = POINTS_LOWER
    within = sum(c.difference.low <= -low / 100 and c.difference.high >= -high / 100 for c in found.values())
    rows = [
        [
            f"{s}, {grid}",
            c.sampler.network_calls,
            percent(c.plain.f_mem.fraction),
            f"{c.plain.frechet:.2f}",
            *cells(c),
        ]
        for (s, grid, n), c in found.items()
    ]
    return (
        "## Solvers, grids and network calls, at alpha_0 = beta_0 = 0.01\n\n"
        "Heun is the reference's: the predictor goes with `eta_i`, the corrector with the mean of the gains.\n\n"
        + table(["solver, grid", "network calls", "plain F_mem %", "plain FD", *HEADER], rows)
        + f"\n\nVerdict: reported {low} to {high} points lower in every set-up; here F_mem falls in {fell} of {len(rows)} "
        f"(95 % interval below 0), and a drop of {low} to {high} points is within the interval in {within}."
    )


def along_training(laboratories: list[Laboratory], seeds: list[int], sampler: Sampler) -> tuple[str, list[dict]]:
    found, rows = [], []
    for laboratory in laboratories:
        draws = [laboratory.draw(sampler, seed) for seed in seeds]
        each = [measure_memorization(draw.images, laboratory.model.training).is_memorized for draw in draws]
        f, by_seed = memorized_fraction(torch.cat(each)), [hits.double().mean().item() for hits in each]
        energy = float(torch.cat([draw.trace(sampler).per_dim for draw in draws]).mean())
        name = laboratory.model.name
        found.append({"snapshot": name, "f_mem": asdict(f), "f_mem_by_seed": by_seed, "energy_per_dim": energy})
        interval = f"{percent(f.fraction)} ({percent(f.low)} to {percent(f.high)})"
        rows.append([name, interval, f"{percent(min(by_seed))} to {percent(max(by_seed))}", f"{energy:.4f}"])
    text = table(["snapshot", "F_mem % (95 %)", "seeds", "KPE per dim"], rows)
    return f"## Memorization along training (plain Euler)\n\n{text}\n\n{laboratories[0].count} samples of each seed.", found


def density(samples: torch.Tensor, training: torch.Tensor) -> dict[str, torch.Tensor]:
    """Log-density of samples (B, ...) under training points, up to a constant: by the distance to the k-th neighbor, and by a
    Gaussian kernel as wide as the median of those distances."""
    x, y = samples.flatten(1), training.flatten(1).to(samples.dtype)
    radius = nearest_neighbors(x, y, k=SUPPORT_NEIGHBOR)[0][:, -1]
    kernel = [torch.logsumexp(-torch.cdist(part, y).square() / (2 * radius.median() ** 2), 1) for part in x.split(100)]
    return {"kNN": -radius.log(), "KDE": torch.cat(kernel)}


def support(laboratory: Laboratory, sampler: Sampler, judge: Judge, seeds: list[int]) -> tuple[str, dict]:
    """KPE against how densely the training images lie around the sample."""
    draws, training = [laboratory.draw(sampler, seed) for seed in seeds], laboratory.model.training
    spaces = {"pixels": lambda images: images, "classifier features": judge.classifier.features}
    found: dict[str, dict] = {}
    for space, embed in spaces.items():
        points = embed(training)
        for draw in draws:
            for kind, value in density(embed(draw.images), points).items():
                rho = spearmanr(draw.trace(sampler).per_dim, value).statistic
                found.setdefault(f"{kind}, {space}", {"reported": SUPPORT[kind], "by_seed": []})["by_seed"].append(float(rho))
    rows = []
    for name, values in found.items():
        low, high = min(values["by_seed"]), max(values["by_seed"])
        verdict = "agrees" if high < 0 else "disagrees" if low > 0 else "undecided"
        rows.append([name, f"{np.mean(values['by_seed']):.2f}", f"{low:.2f} to {high:.2f}", values["reported"], verdict])
    text = (
        f"## KPE and local support: Spearman correlation, generalizing model, plain Euler, {sampler.steps} steps\n\n"
        f"Support: log-density of the {len(training):,} training images at the sample, by the {SUPPORT_NEIGHBOR}th neighbor "
        "or a Gaussian kernel.\n\n" + table(["density", "ours", "seeds", "reported (CIFAR-10)", "sign in every seed"], rows)
    )
    return text, found


def class_score(laboratory: Laboratory, sampler: Sampler, judge: Judge, seeds: list[int]) -> tuple[str, dict]:
    """The paper's CLIP experiment with our classifier: the probability of the class asked for, by group of KPE."""
    draws, labels = [laboratory.draw(sampler, seed) for seed in seeds], laboratory.labels
    found: dict[str, list[list[float]]] = {"all classes together": [], "within each class": []}
    for draw in draws:
        energy, score = draw.trace(sampler).per_dim, judge.classifier.probabilities(draw.images)[range(len(labels)), labels]
        within = torch.empty(len(labels), dtype=torch.long)
        for label in range(NUM_CLASSES):
            within[labels == label] = groups(energy[labels == label])
        for name, group in zip(found, (groups(energy), within), strict=True):
            found[name].append([score[group == g].mean().item() for g in range(GROUPS)])
    rows = []
    for name, values in found.items():
        change = [seed[-1] - seed[0] for seed in values]
        verdict = "agrees" if min(change) > 0 else "disagrees" if max(change) < 0 else "undecided"
        rows.append([name, *(f"{x:.3f}" for x in np.mean(values, 0)), f"{min(change):.3f} to {max(change):.3f}", verdict])
    text = (
        "## Class score by KPE group, generalizing model without guidance\n\nMean probability that the classifier gives the "
        "class asked for, in thirds of KPE from low to high. Reported (ImageNet-256, guidance 1.5): CLIP score 21.87 in the "
        "lowest group, 24.62 in the highest.\n\n"
        + table(["grouped", "low", "middle", "high", "high less low, seeds", "rises in every seed"], rows)
    )
    return text, found


def groups(values: torch.Tensor) -> torch.Tensor:
    """(B,) which of `GROUPS` equal groups each value falls in, from low to high."""
    return values.argsort().argsort() * GROUPS // len(values)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="memorizing", help="the memorizing model: name, folder or snapshot")
    options.add_argument("--generalizing", default="generalizing", help="likewise, for the two experiments on KPE")
    options.add_argument("--snapshots", type=Path, nargs="*", default=[], help="weights along the memorizing model's training")
    options.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    options.add_argument("--num-inference-steps", dest="steps", type=int, default=100, help="of all tables but the solvers'")
    options.add_argument("--network-calls", type=int, nargs="+", default=[100, 250], help="of the solvers' table")
    options.add_argument("--solver-samples", type=int, default=100, help="per seed, in the solvers' table")
    options.add_argument("--snapshot-samples", type=int, default=100, help="per seed, in the table along training")
    options.add_argument("--support-steps", type=int, default=150, help="of the generalizing model")
    args, began = options.parse_args(), time.time()
    if args.num_samples < GROUPS * NUM_CLASSES:
        raise SystemExit(f"--num-samples is {args.num_samples}; give {GROUPS * NUM_CLASSES} or more, to group every class.")
    args.tables = [name for name in args.tables if name != "training" or args.snapshots]
    data = load_data(args.data)
    model = load_model(args.model, data, args.num_images)
    laboratory, small = (Laboratory(model, count, args.cache) for count in (args.num_samples, args.solver_samples))
    general = Laboratory(load_model(args.generalizing, data), args.num_samples, args.cache)
    trained = [
        Laboratory(load_model(path, data, args.num_images), args.snapshot_samples, args.cache) for path in args.snapshots
    ]
    plan, plain = Plan(args.steps, tuple(args.network_calls)), replace(PLAIN, steps=args.steps)
    observed = replace(PLAIN, steps=args.support_steps)
    compared: dict[str, tuple[Laboratory, dict[Any, Sampler], Callable[[Any], str]]] = {
        "main": (laboratory, plan.celeba(), celeba),
        "tau_split": (laboratory, plan.tau_split(), tau_split),
        "shapes": (laboratory, plan.shapes(), shapes),
        "solvers": (small, plan.solvers(), solvers),
    }
    compared = {name: table for name, table in compared.items() if name in args.tables}
    draws = [
        (lab, s)
        for lab, samplers, _ in compared.values()
        for sampler in samplers.values()
        for s in (without(sampler), sampler)
    ]
    if "main" in args.tables:
        draws += [(laboratory, evenly(sampler)) for sampler in plan.celeba().values() if sampler != plain]
    if "training" in args.tables:
        draws += [(lab, plain) for lab in trained]
    if {"support", "class_score"} & set(args.tables):
        draws.append((general, observed))
    for lab, sampler in draws:
        for seed in args.seeds:
            lab.draw(sampler, seed)
    if args.draw_only:
        return
    classifier = Classifier(data, args.epochs, args.cache)
    judge = Judge(classifier, data.x_test)
    texts, results = [], {}
    for name, (lab, samplers, write) in compared.items():
        bench = Bench(lab, judge, args.seeds)
        found = {key: bench.compare(sampler, even=name == "main") for key, sampler in samplers.items()}
        texts.append(write(found))
        if lab.count != args.num_samples:
            texts[-1] += f" {lab.count} samples of each seed, so its FD does not compare with other tables."
        results[name] = [{"row": str(key), **comparison.to_dict()} for key, comparison in found.items()]
    others: dict[str, Callable[[], tuple[str, Any]]] = {
        "training": lambda: along_training(trained, args.seeds, plain),
        "support": lambda: support(general, observed, judge, args.seeds),
        "class_score": lambda: class_score(general, observed, judge, args.seeds),
    }
    for name, make in others.items():
        if name in args.tables:
            text, results[name] = make()
            texts.append(text)
    if missing := [name for name in TABLES if name not in args.tables]:
        texts.append(f"Not run: {', '.join(missing)}.")
    real = judge.frechet(data.x_train[: args.num_samples])
    about = (
        f"Memorizing model: `{model.name}` (weights {model.digest}), {len(model.training)} training images; {args.steps} "
        "steps.\n"
        "* F_mem: share of the samples with d1/d2 < 1/3 in pixels, all seeds together, exact interval.\n"
        "* FD: Frechet distance to the real test images in the features of a classifier that gets "
        f"{classifier.accuracy:.1%} of them right; mean of the seeds. As many real training images are at {real:.2f}.\n"
        "* seeds: lowest to highest. Change: F_mem less that of plain sampling, paired, bootstrap.\n"
        "* Controls: the same net displacement spread evenly (drawn for the main table only); the plain sample with equal "
        "noise; the shaped sample finished with its missing displacement."
    )
    result = {
        "num_samples": args.num_samples,
        "seeds": args.seeds,
        "environment": environment(began),
        "model": {"name": model.name, "digest": model.digest, "training_images": len(model.training)},
        "classifier_test_accuracy": classifier.accuracy,
        **results,
    }
    text = "\n\n".join([about, *texts])
    write_page(args.output, "paper_tables", text, result)


if __name__ == "__main__":
    main()
