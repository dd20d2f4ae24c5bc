"""The sections of the page of ``paper_tables``: text and tables from what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.report import table
from benchmarks.science.controlled import Comparison, Measured
from benchmarks.science.energies import SUPPORT_NEIGHBOR, Energies
from benchmarks.science.significance import Test

TAU = {0.2: 60.31, 0.4: 48.58, 0.6: 14.35, 0.8: 21.07}  # reported FID
POINTS_LOWER = (6, 10)  # reported drop of F_mem for every solver, grid and number of network calls
SUPPORT = {"kNN": -0.65, "KDE": -0.64}  # reported Spearman correlation with KPE, CIFAR-10


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def points(test: Test) -> str:
    return f"{percent(test.change)} ({percent(test.low)} to {percent(test.high)})"


def change(test: Test) -> str:
    return f"{test.change:+.2f} ({test.low:+.2f} to {test.high:+.2f})"


def p_value(test: Test) -> str:
    return "< .001" if test.adjusted < 0.001 else f"{test.adjusted:.3f}"


def in_range(test: Test) -> str:
    """Whether the reported 6 to 10 points and the interval overlap."""
    low, high = (reported / 100 for reported in POINTS_LOWER)
    return "within" if test.low <= -low and test.high >= -high else "outside"


@dataclass
class Page:
    """The tests after their adjustment, and the floor: the Frechet distance of as many real training images."""

    tests: dict[str, Test]
    floor: float

    def main(self, found: Mapping[str, Comparison]) -> str:
        first = next(iter(found.values()))
        samplers: dict[str, Measured] = {"plain": first.plain} | {name: c.ours for name, c in found.items()}
        effects, shares, controls = [], [], []
        for name, measured in samplers.items():
            v, c = measured.summary(first.judge), found.get(name)
            f_mem = [percent(value) for value in v["f_mem"].values()]
            ratios = [f"{q:.3f}" for q in v["ratio_quantiles"]]
            kept = None if c is None else c.ours.kept(c.plain)
            near = [*f_mem, percent(v["f_mem_features"]), *ratios]
            shares.append([name, *near, "" if kept is None else percent(kept)])
            interval = f"{f_mem[1]} ({' to '.join(percent(end) for end in v['f_mem_interval'])})"
            f_cells, d_cells = [""] * 3, [""] * 2
            if c is not None:
                f, d = (self.tests[test.name] for test in (c.f_mem, c.frechet))
                ratio, low, high = c.ratio
                f_cells = [points(f), p_value(f), f"{ratio:.2f} ({low:.2f} to {high:.2f})"]
                d_cells = [change(d), p_value(d)]
                for control, test in c.beyond.items():
                    t, its = self.tests[test.name], percent(c.controls[control].f_mem.fraction)
                    controls.append([name, control, its, points(t), p_value(t)])
            above = f"{v['frechet'] - self.floor:.2f}"
            effects.append([name, interval, *f_cells, above, *d_cells, percent(v["class_accuracy"])])
        header = ["sampler", "F_mem %", "change, points", "p", "of plain", "FD above floor", "change", "p", "class accuracy %"]
        measures = ["sampler", "F_mem % at 1/4", "at 1/3", "at 1/2", "in features, 1/3"]
        measures += ["d1/d2, lowest tenth", "median", "highest tenth", "memorized that keep their neighbor %"]
        return "\n\n".join(
            [
                "## The main table",
                table(header, effects),
                "### How near the training images are",
                table(measures, shares),
                "### Against the controls",
                table(["sampler", "control", "its F_mem %", "sampler less control, points", "p"], controls),
            ]
        )

    def tau_split(self, found: Mapping[str, Comparison], steps: Mapping[str, Test]) -> str:
        rows = [
            [tau, percent(c.ours.f_mem.fraction), points(c.f_mem), change(c.frechet), TAU[float(tau)]]
            for tau, c in found.items()
        ]
        header = ["tau_split", "F_mem %", "change, points", "FD less plain", "reported FID"]
        adjusted = {name: self.tests[test.name] for name, test in steps.items()}
        between = "; ".join(f"{name} {change(test)}, p {p_value(test)}" for name, test in adjusted.items())
        return (
            f"## tau_split, at alpha_0 = beta_0 = 0.01\n\n{table(header, rows)}\n\nFD from one to the next: {between}. The "
            "other intervals are not adjusted."
        )

    def shapes(self, found: Mapping[str, Comparison]) -> str:
        rows = [[n, percent(c.ours.f_mem.fraction), points(c.f_mem), change(c.frechet)] for n, c in found.items()]
        header = ["launch / landing", "F_mem %", "change, points", "FD less plain"]
        return (
            f"## Shapes of launch and landing, at alpha_0 = beta_0 = 0.01\n\n{table(header, rows)}\n\nNo reported numbers at "
            "hand, so no verdict; intervals are not adjusted."
        )

    def solvers(self, found: Mapping[str, Comparison]) -> str:
        rows = []
        for name, c in found.items():
            test, f_mem = self.tests[c.f_mem.name], [percent(m.f_mem.fraction) for m in (c.plain, c.ours)]
            verdicts = [p_value(test), test.agrees_with(-1), in_range(test)]
            rows.append([name, *f_mem, points(test), *verdicts, change(c.frechet)])
        header = ["solver, grid, network calls", "plain F_mem %", "F_mem %", "change, points", "p", "falls", "6 to 10 points"]
        return (
            "## Solvers, grids and network calls, at alpha_0 = beta_0 = 0.01\n\nHeun (reported: midpoint): the predictor goes "
            "with `eta_i`, the corrector with the mean of the gains, in the last step too.\n\n"
            + table([*header, "FD less plain"], rows)
        )

    def energy(self, found: Energies) -> str:
        def cells(test: Test) -> list[str]:
            return [change(test), p_value(self.tests[test.name])]

        rows = [[space, *(cell for test in tests.values() for cell in cells(test))] for space, tests in found.density.items()]
        header = ["density", "path energy", "p", "displacement", "p", "excess", "p"]
        score = [
            [name, *(f"{value:.3f}" for value in thirds), *cells(found.score[name])]
            for name, thirds in found.score_by_group.items()
        ]
        return (
            f"## Energy, density and class score: generalizing model, plain Euler, {found.count} samples\n\nCorrelations of "
            "ranks within each class. Density: of the training images at the sample, by the "
            f"{SUPPORT_NEIGHBOR}th neighbor or a Gaussian kernel; reported for path energy: "
            f"{SUPPORT['kNN']}, {SUPPORT['KDE']} (CIFAR-10).\n\n{table(header, rows)}\n\nMean probability that the classifier "
            "gives the class asked for, in thirds within each class, from low to high. Reported: CLIP "
            "score 21.87 in the lowest group of KPE, 24.62 in the highest (ImageNet-256, guidance 1.5).\n\n"
            + table(["thirds of", "low", "middle", "high", "rank correlation", "p"], score)
        )
