"""Fitted sampling against other samplers at equal network calls, on the embedded models.

    python -m benchmarks.science.fitted_sampling --data fashion_mnist.npz --judged 200 --epochs 0

The error of a sample is the RMS distance of its latents to where a run of many small steps (the teacher) takes the same noise;
tables hold its mean over held-out noises, with 95 % bootstrap intervals. Fits are those of ``kts fit``: trajectories to fit
to, others to choose grid and shrinkage by, and others again for the tables.

Bars, set before the first run, each for every model and guidance scale, on the mean error: (1) at most .6 of UniPC 2's at 8,
12 and 20 calls; (2) UniPC 2's error of 20 calls with 12 calls or fewer; (3) Euler's error of 28 calls with 8 calls or fewer.

Writes ``results/fitted_sampling.md``, ``.json``, the plot of the errors and that of the fitted gains. Teachers and errors are
kept in the cache, so that a stopped run resumes.
"""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from matplotlib.figure import Figure

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.fashion_mnist import Classifier, load_data
from benchmarks.science.judge import Judge
from benchmarks.science.laboratory import load_model
from diffusers_kts import (
    PRESETS,
    KTSDPMSolverMultistepScheduler,
    KTSFittedFlowMatchScheduler,
    KTSFlowMatchHeunScheduler,
    KTSUniPCMultistepScheduler,
    embedded_model,
)
from diffusers_kts.fit.errors import FITTED, Error, distances
from diffusers_kts.fit.grid import measured_grid
from diffusers_kts.fit.lockstep import Lockstep
from diffusers_kts.fit.runs import Runs
from diffusers_kts.fit.study import Study
from diffusers_kts.fit.teacher import Teachers, solver
from diffusers_kts.gain import Gain
from diffusers_kts.memorization.fraction import measure_memorization, memorized_fraction
from diffusers_kts.sampling.find import find_model
from diffusers_kts.sampling.prompts import Prompt
from diffusers_kts.sampling.sampler import Sampler
from diffusers_kts.sampling.settings import SamplingSettings

COUNTS = (4, 6, 8, 12, 20, 28)
FEW = (2, 4, 8, 16)  # trajectories
HISTORY = 4
AT = 8  # calls of the further questions
UNIPC, EULER = "UniPC 2", "Euler"
STYLES = (
    ("#D55E00", "o-"), ("#000000", "s-"), ("#999999", "s:"), ("#8C510A", "X-"), ("#0072B2", "^-"), ("#56B4E9", "^:"),
    ("#009E73", "v-"), ("#CC79A7", "d-"), ("#E69F00", "d:"), ("#666666", "P:"), ("#000000", "<--"), ("#D55E00", "<--"),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and how it is called."""

    model: str
    guidance_scale: float
    fitted: int = 32
    choice: int = 16
    test: int = 48
    teacher_steps: int = 200
    batch_size: int = 16
    counts: tuple[int, ...] = COUNTS
    other_classes: bool = False
    size: int | None = None  # pixels across, the pipeline's own unless given

    @property
    def name(self) -> str:
        return f"{self.model}, guidance {self.guidance_scale:g}"

    @property
    def file_name(self) -> str:
        return f"{self.model}-{self.guidance_scale:g}"


CASES = (
    Case("generalizing", 1.0),
    Case("memorizing", 1.0),
    Case("generalizing", 2.0),
    Case("emoji-memorizing", 1.0),
    Case("emoji-memorizing", 4.0),
)


class Bench:
    """The trajectories of a case."""

    def __init__(self, case: Case, cache: Path, name: str = "") -> None:
        folder = find_model(case.model)
        settings = SamplingSettings(model=case.model, guidance_scale=case.guidance_scale, batch_size=case.batch_size,
                                    height=case.size, width=case.size)  # fmt: skip
        self.case, self.sampler = case, Sampler(folder, settings, torch.device("cpu"))
        self.runs = Runs(self.sampler, *subjects(case), case.fitted + case.choice * case.other_classes)
        first, second, third = np.cumsum([case.fitted, case.choice, case.test]).tolist()
        sizes = [0, *(n for n in FEW if n < case.fitted), case.fitted]
        self.fit = [range(*ends) for ends in itertools.pairwise(sizes)]  # so that a fit to the first of them is a fit, too
        self.choice, self.test = self._batches(first, second), self._batches(second, third)
        self.name = name or case.file_name
        self.teachers = Teachers(cache / self.name, self.fit, case.teacher_steps)
        for batch in [*self.fit, *self.choice, *self.test]:
            if not self.teachers.is_there(batch):
                self.teachers.draw(self.runs, batch)

    def _batches(self, start: int, stop: int) -> list[range]:
        size = self.case.batch_size
        return [range(i, min(i + size, stop)) for i in range(start, stop, size)]

    @property
    def own(self) -> Any:
        return self.sampler.own_scheduler

    def study(self, history: int | None) -> Study:
        return Study(self.runs, self.teachers, self.choice, self.test, history)

    def errors(self, make: Callable[[], Any], steps: int) -> torch.Tensor:
        """(n,) of the test; ``steps`` as the pipeline is asked for them."""
        parts = []
        for batch in self.test:
            end, _ = self.runs.run(batch, make(), steps)
            parts.append(distances(end, self.teachers.states(batch, 1.0)))
        return torch.cat(parts)


def subjects(case: Case) -> tuple[list[Prompt], list[Prompt]]:
    """What is fitted to, and what is held out: every fourth caption; of the classes the same ones, or the last five."""
    if case.model.startswith("emoji"):
        prompts = [Prompt(caption) for caption in emoji_of(case.model)[1]]
        return [prompt for i, prompt in enumerate(prompts) if i % 4 != 3], prompts[3::4]
    classes = [Prompt(label) for label in range(10)]
    return (classes[:5], classes[5:]) if case.other_classes else (classes, classes)


def shifted(steps: int, shift: float) -> list[float]:
    sigmas = np.linspace(1, 0, steps + 1)
    return (1 - shift * sigmas / (1 + (shift - 1) * sigmas)).tolist()


def samplers(bench: Bench, steps: int, fit: dict[str, Any], cost: np.ndarray) -> dict[str, tuple[Callable[[], Any], int]]:
    """How to make every sampler of ``steps`` network calls, and the number of steps that the pipeline is asked for."""
    own, times, acceleration = bench.own, bench.teachers.times, bench.teachers.acceleration()
    even = [i / steps for i in range(steps + 1)]
    quantiles = measured_grid(times, acceleration, steps, 0.5)
    planned = [times[k] for k in cheapest(cost, steps)]
    off = PRESETS["off"]
    found: dict[str, tuple[Callable[[], Any], int]] = {
        FITTED: (lambda: solver(own, fit["flow_times"], fit["weights"]), steps),
        EULER: (lambda: solver(own, even, 1), steps),
        "Euler, shift 3": (lambda: solver(own, shifted(steps, 3.0), 1), steps),
        "Heun": (lambda: KTSFlowMatchHeunScheduler.from_config(own.config, **off), (steps + 1) // 2),
        UNIPC: (lambda: KTSUniPCMultistepScheduler.from_config(own.config, **off), steps),
        "UniPC 3": (lambda: KTSUniPCMultistepScheduler.from_config(own.config, **off, solver_order=3), steps),
        "DPM-Solver++ 2M": (lambda: KTSDPMSolverMultistepScheduler.from_config(own.config, **off), steps),
        "Euler, acceleration quantiles": (lambda: solver(own, quantiles, 1), steps),
        "Euler, dynamic programming": (lambda: solver(own, planned, 1), steps),
        "Adams-Bashforth 2, even grid": (lambda: solver(own, even, 2), steps),
        "Adams-Bashforth 2, measured grid": (lambda: solver(own, fit["flow_times"], 2), steps),
    }
    return found


def step_costs(teachers: Teachers) -> np.ndarray:
    """(K + 1, K + 1) RMS error of one Euler step between any two of the teacher's levels, from the teacher's states; infinite
    backwards. After OptimalSteps (arXiv 2503.21774)."""
    total, count = 0.0, 0
    t = np.array(teachers.times)
    for batch in teachers.fitted:
        states = torch.stack([teachers.states(batch, time) for time in teachers.times]).flatten(2).double().transpose(0, 1)
        moves = states.diff(dim=1) * teachers.steps
        v = [moves[:, 0]]
        for k in range(1, teachers.steps):  # the velocities of its Adams-Bashforth steps
            v.append((moves[:, k] + v[-1] / 2) / 1.5)
        v.append(v[-1])
        for x, u in zip(states, torch.stack(v, 1), strict=True):
            xx, xu, uu = x @ x.T, x @ u.T, (u * u).sum(1)
            d2 = xx.diag()[:, None] + xx.diag()[None] - 2 * xx  # |x_j - x_k|^2
            h = torch.tensor(t[None] - t[:, None])
            cross = xu.diag()[:, None] - xu.T  # <x_j - x_k, u_j>
            total = total + ((d2 + 2 * h * cross + h * h * uu[:, None]).clamp(min=0) / x.shape[1]).sqrt()
            count += 1
    cost = np.asarray(total) / count
    return np.where(t[None] > t[:, None], cost, np.inf)


def cheapest(cost: np.ndarray, steps: int) -> list[int]:
    """The levels of the path from the first to the last in so many steps whose costs add up to least."""
    best, came = cost[0], []
    for _ in range(steps - 1):
        through = best[:, None] + cost
        came.append(through.argmin(0))
        best = through.min(0)
    path = [len(cost) - 1]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return [0, *reversed(path)]


def measure(bench: Bench, counts: list[int], cache: Path) -> dict[int, Any]:
    """Fits and errors of a case, (n,) by sampler and number of calls; kept in the cache count by count."""
    cost = None
    found = {}
    for steps in counts:

        def work(steps: int = steps) -> dict[str, Any]:
            nonlocal cost
            cost = step_costs(bench.teachers) if cost is None else cost
            about = bench.study(HISTORY).fit(steps)
            made = samplers(bench, steps, about["fit"], cost)
            return about | {"errors": {name: bench.errors(make, asked).tolist() for name, (make, asked) in made.items()}}

        found[steps] = kept(cache, f"{bench.name}-{steps:02d}", work)
    return found


def kept(cache: Path, name: str, work: Callable[[], Any]) -> Any:
    """What ``work`` gives, from the cache if it is there."""
    path = cache / f"{name}.json"
    if not path.exists():
        began = time.perf_counter()
        path.write_text(json.dumps(work()))
        print(f"{name}, {time.perf_counter() - began:.0f} s", flush=True)
    return json.loads(path.read_text())


# --- further questions


def few_trajectories(bench: Bench) -> list[dict[str, Any]]:
    """A whole fit to the first 2, 4, 8 ... trajectories."""
    found = []
    for count in range(1, len(bench.fit) + 1):
        bench.teachers.fitted = bench.fit[:count]
        about = bench.study(HISTORY).fit(AT)
        errors = bench.errors(lambda fit=about["fit"]: solver(bench.own, fit["flow_times"], fit["weights"]), AT)  # type: ignore[misc]
        found.append({"of": bench.fit[count - 1].stop, "shrinkage": about["shrinkage"], "errors": errors.tolist()})
    bench.teachers.fitted = bench.fit
    return found


def histories(bench: Bench) -> list[dict[str, Any]]:
    """Fits with other numbers of velocities."""
    found = []
    for history in (1, 2, 3, 4, None):
        fit = bench.study(history).fit(AT)["fit"]
        errors = bench.errors(lambda fit=fit: solver(bench.own, fit["flow_times"], fit["weights"]), AT)  # type: ignore[misc]
        found.append({"of": history or "all", "errors": errors.tolist()})
    return found


def gains(bench: Bench, steps: int = 20) -> list[float]:
    """One number for each step of Euler on an even grid, by least squares."""
    rows = Lockstep(bench.teachers, [i / steps for i in range(steps + 1)], 1, 0.0).fit(bench.runs)
    return [row[0] for row in rows]


def elsewhere(bench: Bench, fit: dict[str, Any]) -> list[float]:
    """Errors with a fit that was made for something else."""
    return bench.errors(lambda: solver(bench.own, fit["flow_times"], fit["weights"]), len(fit["weights"])).tolist()


def emoji_of(model: str) -> tuple[torch.Tensor, list[str]]:
    """The pictures that an emoji model was trained on, (n, 3, H, W) in [0, 1], and their captions."""
    with np.load(embedded_model(model) / "training_images.npz") as archive:
        return torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).float() / 255, archive["captions"].tolist()


def quality(
    bench: Bench, fit: dict[str, Any], judge: Judge | None, training: torch.Tensor, count: int
) -> list[dict[str, Any]]:
    """F_mem, with a judge also Frechet distance and accuracy, on other noises, at equal calls and with 100 Euler steps."""
    off, first = PRESETS["off"], bench.test[-1].stop + (-bench.test[-1].stop) % 10
    makes: dict[str, tuple[Callable[[], Any], int]] = {
        "Euler, 100 calls": (lambda: solver(bench.own, [i / 100 for i in range(101)], 1), 100),
        FITTED: (lambda: solver(bench.own, fit["flow_times"], fit["weights"]), AT),
        UNIPC: (lambda: KTSUniPCMultistepScheduler.from_config(bench.own.config, **off), AT),
        EULER: (lambda: solver(bench.own, [i / AT for i in range(AT + 1)], 1), AT),
    }
    found = []
    for name, (make, steps) in makes.items():
        parts = []
        for start in range(first, first + count, 20):
            block = range(start, min(start + 20, first + count))
            _, drawn = bench.runs.run(block, make(), steps, decode=True)
            parts.append(drawn.images)
        share = memorized_fraction(measure_memorization(torch.cat(parts), training).is_memorized)
        row = {"sampler": name, "calls": steps, "f_mem": share.fraction, "low": share.low, "high": share.high}
        if judge is not None:
            verdict = judge([torch.cat(parts)], training)
            row |= {"frechet": verdict.frechet, "accuracy": verdict.accuracy}
        found.append(row)
    return found


def apart(case: Case, name: str, cache: Path, labels: tuple[str, str], fit: dict[str, Any]) -> dict[str, list[float]]:
    """Errors in another case than ``fit`` was made for: with a fit of this case and with ``fit``, and of UniPC."""
    bench = Bench(case, cache, name)
    own = bench.study(HISTORY).fit(AT)["fit"]
    unipc = partial(KTSUniPCMultistepScheduler.from_config, bench.own.config, **PRESETS["off"])
    return {labels[0]: elsewhere(bench, own), labels[1]: elsewhere(bench, fit), UNIPC: bench.errors(unipc, AT).tolist()}


def step_costs_in_time(steps: int = 20, rounds: int = 7) -> list[dict[str, Any]]:
    """Milliseconds of a step on latents of (1, 16, 128, 128), without a network: the least of some runs, taken in turns."""
    grid = [i / steps for i in range(steps + 1)]
    makes: dict[str, Callable[[], Any]] = {
        f"fitted, history {history or 'all'}": partial(
            KTSFittedFlowMatchScheduler,
            fits=[
                {"flow_times": grid, "weights": [[1.0] * (min(history, i + 1) if history else i + 1) for i in range(steps)]}
            ],
        )
        for history in (2, 4, None)
    }
    makes[UNIPC] = partial(UniPCMultistepScheduler, prediction_type="flow_prediction", use_flow_sigmas=True)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        x, v = torch.randn(2, 1, 16, 128, 128, dtype=dtype)
        least = dict.fromkeys(makes, np.inf)
        for _ in range(rounds):
            for name, make in makes.items():
                scheduler = make()
                scheduler.set_timesteps(steps)
                began = time.perf_counter()
                for timestep in scheduler.timesteps:
                    scheduler.step(v, timestep, x)
                least[name] = min(least[name], (time.perf_counter() - began) / steps)
        found += [{"dtype": str(dtype)[6:], "scheduler": name, "ms": 1000 * least[name]} for name in makes]
    return found


def summarized(value: Any) -> Any:
    """Errors of samples as mean, interval and typical error; numbers in six digits."""
    if isinstance(value, dict):
        return {key: _errors(part) if key in ("errors", "elsewhere") else summarized(part) for key, part in value.items()}
    if isinstance(value, list):
        return [summarized(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _errors(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _errors(errors) for name, errors in part.items()}
    return summarized({name: number for name, number in asdict(Error.of(torch.tensor(part))).items() if number is not None})


# --- the page


def plot_errors(results: dict[str, dict[int, Any]], path: Path) -> None:
    columns, rows = min(3, len(results)), -(-len(results) // 3)
    figure = Figure(figsize=(4.8 * columns, 4.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    for axes, (name, found) in zip(panels, results.items(), strict=False):
        labels = list(next(iter(found.values()))["errors"])
        for label, (color, style) in zip(labels, STYLES, strict=False):
            means = [float(np.mean(found[n]["errors"][label])) for n in found]
            width = 2.6 if label == FITTED else 1.1
            axes.plot(list(found), means, style, color=color, label=label, linewidth=width, markersize=4)
        axes.set(xlabel="network calls", ylabel="mean error", title=name, xscale="log", yscale="log")
        axes.set_xticks(list(found), [str(n) for n in found])
        axes.minorticks_off()
    panels[0].legend(frameon=False, fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def plot_gains(found: dict[str, list[float]], path: Path) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, values), (color, style) in zip(found.items(), STYLES, strict=False):
        t = [i / len(values) for i in range(len(values) + 1)]
        axes.step(t, [*values, values[-1]], where="post", color=color, linestyle=style[1:], label=name)
    t = np.linspace(0, 1, 200)
    axes.plot(
        t, Gain(alpha_0=0.01, beta_0=0.01)(t), color="0.5", linewidth=2.5, label="the paper's eta, 0.01 / 0.01", zorder=0
    )
    axes.set(xlabel="flow time", ylabel="gain", title="Gains fitted to Euler's steps")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def cell(errors: list[float]) -> str:
    e = Error.of(torch.tensor(errors))
    return f"{e.mean:.3g} ({e.low:.3g}-{e.high:.3g})"


def mean(found: dict[int, Any], steps: int, name: str) -> float:
    return float(np.mean(found[steps]["errors"][name]))


def bars(name: str, found: dict[int, Any]) -> list[dict[str, Any]]:
    """What each bar asks, and whether it is reached."""
    rows = []
    for steps in (8, 12, 20):
        if steps in found:
            ratio = mean(found, steps, FITTED) / mean(found, steps, UNIPC)
            typical = Error.of(*(torch.tensor(found[steps]["errors"][label]) for label in (UNIPC, FITTED)))
            bar, figures = f"at most .6 of UniPC 2's error at {steps} calls", list(asdict(typical).values())[4:]
            rows.append({"case": name, "bar": bar, "value": ratio, "reached": ratio <= 0.6, "typical": figures})
    for label, after, most in ((UNIPC, 20, 12), (EULER, 28, 8)):
        if after in found:
            enough = [n for n in found if mean(found, n, FITTED) <= mean(found, after, label)]
            fewest = min(enough, default=None)
            rows.append({"case": name, "bar": f"{label}'s error of {after} calls with at most {most}", "value": fewest,
                         "reached": fewest is not None and fewest <= most, "typical": None})  # fmt: skip
    return rows


def in_words(bar: dict[str, Any]) -> list[str]:
    value = "none of these" if bar["value"] is None else f"{bar['value']:.3f}" if bar["typical"] else str(bar["value"])
    typical = "{:.2f} ({:.2f}-{:.2f})".format(*bar["typical"]) if bar["typical"] else ""
    return [bar["case"], bar["bar"], value, typical, "yes" if bar["reached"] else "**no**"]


def page(
    results: dict[str, dict[int, Any]],
    further: dict[str, Any],
    judged: list[dict[str, Any]],
    costs: list[dict[str, Any]],
) -> str:
    reached = sum(bar["reached"] for bar in judged)
    better = sum(bar["typical"] is not None and bar["typical"][0] <= 0.6 for bar in judged)
    ratios = sum(bar["typical"] is not None for bar in judged)
    parts = [
        "Error of a sample: RMS distance of its latents to where the teacher, a run of 200 Adams-Bashforth "
        "steps, takes the same noise. Tables hold its mean over held-out noises (emoji: of held-out captions, too) with 95 % "
        "bootstrap intervals. Fits are those of `kts fit`. Heun makes one call fewer than stated.",
        "![Error against network calls](fitted_sampling.png)",
        f"Verdict: {reached} of {len(judged)} bars, which were set before the first run, are reached. They are on the mean "
        "error, in which a few samples that end at another picture weigh most; by the typical error (geometric mean), "
        f"{better} of the {ratios} ratios to UniPC 2 are at most .6.",
        table(["case", "bar", "found", "typical ratio (95 %)", "reached"], map(in_words, judged)),
        "![Fitted gains](fitted_sampling-gains.png)",
        "A step on latents of 16 x 128 x 128 with its energy, without the network (UniPC 2: diffusers' own, without energy): "
        + "; ".join(f"{row['dtype']}, {row['scheduler']} {row['ms']:.2f} ms" for row in costs)
        + ".",
    ]
    for name, found in results.items():
        labels = list(next(iter(found.values()))["errors"])
        rows = [[label, *(cell(found[n]["errors"][label]) for n in found)] for label in labels]
        chosen = [f"{n}: {found[n]['exponent']:g} / {found[n]['shrinkage']}" for n in found]
        text = table(["sampler", *(f"{n} calls" for n in found)], rows)
        parts.append(f"## {name}\n\n{text}\n\nExponent of the grid / shrinkage chosen, by calls: {'; '.join(chosen)}.")
        own = further[name]
        for question, key in (("Trajectories to fit to", "few"), ("Velocities per step at most", "histories")):
            if own[key]:
                answers = "; ".join(f"{row['of']}: {cell(row['errors'])}" for row in own[key])
                parts.append(f"{question}, at 8 calls: {answers}.")
        for label, errors in own["elsewhere"].items():
            parts.append(f"{label[0].upper()}{label[1:]}, at 8 calls: {cell(errors)}.")
        if own["quality"]:
            rows = []
            for row in own["quality"]:
                cells = [row["sampler"], row["calls"], f"{row['f_mem']:.1%} ({row['low']:.1%}-{row['high']:.1%})"]
                rows.append(cells + ([f"{row['frechet']:.2f}", f"{row['accuracy']:.1%}"] if "frechet" in row else []))
            header = ["sampler", "calls", "F_mem (95 %)", "FD", "class accuracy"]
            parts.append(table(header[: len(rows[0])], rows))
    return "\n\n".join(parts)


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(seeds=[0], num_samples=48)
    options.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="numbers of the cases")
    options.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="network calls")
    options.add_argument(
        "--judged", type=int, default=300, help="samples for F_mem and, with --epochs above 0, the Frechet distance"
    )
    options.add_argument("--small", action="store_true", help="few short trajectories, to try the script")
    args, began = options.parse_args(), time.time()
    cache = args.cache / "fitted_sampling"
    cache.mkdir(parents=True, exist_ok=True)
    small = {"fitted": 4, "choice": 2, "test": 2, "teacher_steps": 40} if args.small else {}
    cases = [replace(CASES[number], **small) for number in args.cases]
    benches = {case.name: Bench(case, cache) for case in cases}
    results = {
        name: measure(bench, [n for n in args.counts if n in bench.case.counts], cache) for name, bench in benches.items()
    }
    if args.draw_only:
        return
    data = load_data(args.data)
    judge = Judge(Classifier(data, args.epochs, args.cache), data.x_test) if args.judged and args.epochs else None
    further: dict[str, Any] = {}
    for name, bench in benches.items():
        fit, model = results[name][AT]["fit"], bench.case.model
        gained = kept(cache, f"{bench.name}-gains", partial(gains, bench))
        own = further[name] = {"gains": gained, "elsewhere": {}, "few": [], "histories": [], "quality": []}
        for other, found in results.items():
            if other != name and benches[other].case.model == model:
                scale = benches[other].case.guidance_scale
                work = partial(elsewhere, bench, found[AT]["fit"])
                own["elsewhere"][f"fitted at guidance {scale:g}"] = kept(cache, f"{bench.name}-from-{scale:g}", work)
        grey = not model.startswith("emoji")
        if bench.case.guidance_scale == 1:
            if grey:  # where the network is cheap
                own["few"] = kept(cache, f"{bench.name}-few", partial(few_trajectories, bench))
                own["histories"] = kept(cache, f"{bench.name}-histories", partial(histories, bench))
                where, labels, case = "classes", ("fitted to classes 0 to 4", "fitted to all"), {"other_classes": True}
            else:
                where, labels, case = "48 pixels", ("fitted at 48 pixels", "fitted at 64"), {"size": 48}
            work = partial(apart, replace(bench.case, **case), f"{bench.name}-apart", cache, labels, fit)
            there = kept(cache, f"{bench.name}-{where.replace(' ', '-')}", work)
            own["elsewhere"] |= {f"{'classes 5 to 9' if grey else where}, {label}": there[label] for label in there}
        if args.judged and (model != "generalizing" or judge is not None):
            training = load_model(model, data).training if grey else emoji_of(model)[0]
            work = partial(quality, bench, fit, judge if grey else None, training, args.judged)
            own["quality"] = kept(cache, f"{bench.name}-quality", work)
    plot_errors(results, args.output / "results" / "fitted_sampling.png")
    plot_gains({name: own["gains"] for name, own in further.items()}, args.output / "results" / "fitted_sampling-gains.png")
    judged = [row for name, found in results.items() for row in bars(name, found)]
    costs = kept(cache, "step-costs", partial(step_costs_in_time, rounds=1 if args.small else 7))
    result = {
        "step_costs": costs,
        "num_samples": args.num_samples,
        "seeds": args.seeds,
        "environment": environment(began),
        "bars": judged,
        "cases": [
            {"case": asdict(bench.case), "fits": {str(n): found for n, found in results[name].items()}, **further[name]}
            for name, bench in benches.items()
        ],
    }
    write_page(args.output, "fitted_sampling", page(results, further, judged, costs), summarized(result))


if __name__ == "__main__":
    main()
