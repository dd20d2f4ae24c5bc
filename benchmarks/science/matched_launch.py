r"""A launch fitted to what a model lacks: gains that give its path the speed that it has on noised data.

    python -m benchmarks.science.matched_launch --data fashion_mnist.npz --num-samples 1000 --seeds 0 1

At flow time t a network trained well has the same mean ``||v||^2`` on its own path as on noised training images
``(1 - t) noise + t image``, since both have the same distribution. Where its path is slower, we multiply the step by the ratio

    g(t) = sqrt( E ||v(noised data, t)||^2 / E ||v(path, t)||^2 ),

measured on `NUM_IMAGES` training images and the plain run of another seed. "launch" has these gains before tau_split and 1
after, "all the way" at every step. The idea of matching a deficit is that of arXiv 2605.14819; the formula is ours.

Decided before the run: the gains do something where, on the same noises, F_mem changes (exact McNemar test) or the Frechet
distance does (jackknife), p < .05 after Holm over all tests of the page.
"""

import time
from dataclasses import asdict, replace
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.fashion_mnist import Classifier, load_data
from benchmarks.science.judge import CELLS, Judge
from benchmarks.science.laboratory import Laboratory, Sampler, load_model
from benchmarks.science.significance import LEVEL, f_mem_test, frechet_test, holm
from diffusers_kts.flow_coordinates import flow_times
from diffusers_kts.gain import Gain
from diffusers_kts.kpe.sums import squared_norm
from diffusers_kts.memorization.fraction import measure_memorization

PLAIN = Sampler()
NUM_IMAGES, CALIBRATION_SEED = 1000, 100


@torch.no_grad()
def matched_gains(laboratory: Laboratory, labels: torch.Tensor) -> list[float]:
    """One per step of plain sampling; ``labels`` (n,) are those of the training images."""
    path, sigmas = laboratory.draw(PLAIN, CALIBRATION_SEED), PLAIN.scheduler().sigmas[:-1]
    training, generator = laboratory.model.training, torch.Generator().manual_seed(CALIBRATION_SEED)
    rows = torch.randperm(min(len(training), len(labels)), generator=generator)[:NUM_IMAGES]
    x, classes = 2 * training[rows] - 1, labels[rows]
    gains = []
    for sigma, power in zip(sigmas, path.power.double().mean(0), strict=True):
        noised = (1 - sigma) * x + sigma * torch.randn(x.shape, generator=generator)
        timestep = (1000 * sigma).expand(len(x))
        v = laboratory.model.network(noised, timestep=timestep, class_labels=classes).sample
        gains.append(float((squared_norm(v).double().mean() / power).sqrt()))
    return gains


def samplers(gains: list[float]) -> dict[str, Sampler]:
    t = flow_times(PLAIN.scheduler().sigmas)[:-1]
    launch = tuple(g if before else 1.0 for g, before in zip(gains, t < PLAIN.tau_split, strict=True))
    return {
        "plain": PLAIN,
        "matched, launch": replace(PLAIN, gain=launch),
        "matched, all the way": replace(PLAIN, gain=tuple(gains)),
        "the paper's launch, .01": replace(PLAIN, alpha_0=0.01),
        "the paper's launch, .02": replace(PLAIN, alpha_0=0.02),
    }


def measure(laboratory: Laboratory, labels: torch.Tensor, judge: Judge, seeds: list[int]) -> dict[str, Any]:
    gains = matched_gains(laboratory, labels)
    training, rows, plain = laboratory.model.training, [], None
    for name, sampler in samplers(gains).items():
        images = [laboratory.draw(sampler, seed).images for seed in seeds]
        features = torch.cat([judge.classifier.features(part) for part in images])
        memorized = torch.cat([measure_memorization(part, training).is_memorized for part in images])
        row: dict[str, Any] = {"sampler": name, "verdict": judge(images, training)}
        if plain is None:
            plain = memorized, features
        else:
            place = f"{laboratory.model.name}, {name}"
            row["tests"] = [
                f_mem_test(f"F_mem, {place}", memorized, plain[0]),
                frechet_test(f"FD, {place}", features, plain[1], judge.reference),
            ]
        rows.append(row)
    return {"gains": gains, "rows": rows}


def plot(found: dict[str, Any], path: Any) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    t = flow_times(PLAIN.scheduler().sigmas).numpy()
    for name, color in zip(found, ("#D55E00", "#0072B2"), strict=False):
        axes.step(t[:-1], found[name]["gains"], where="post", color=color, label=f"{name}, matched")
    axes.plot(
        t, Gain(alpha_0=0.01, beta_0=0.01)(t), color="0.5", linewidth=2.5, label="the paper's eta, 0.01 / 0.01", zorder=0
    )
    axes.set(xlabel="flow time", ylabel="gain")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def describe(name: str, rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        tests = row.get("tests", [])
        cells = [row["sampler"], *row["verdict"].cells()]
        cells += [
            f"{scale * test.change:+.2f} ({scale * test.low:+.2f} to {scale * test.high:+.2f}), p {test.adjusted:.2g}"
            for test, scale in zip(tests, (100, 1), strict=False)
        ]
        cells += ["yes" if any(test.adjusted < LEVEL for test in tests) else "no"] if tests else [""] * 3
        lines.append(cells)
    header = ["sampler", *CELLS, "F_mem less plain's, points", "FD less plain's", "does something"]
    return f"## {name}\n\n{table(header, lines)}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=["memorizing", "generalizing"], help="names, folders or snapshots")
    args, began = options.parse_args(), time.time()
    data = load_data(args.data)
    laboratories = [Laboratory(load_model(path, data, args.num_images), args.num_samples, args.cache) for path in args.models]
    judge = Judge(Classifier(data, args.epochs, args.cache), data.x_test)
    found = {}
    for laboratory in laboratories:
        labels = data.y_train[: len(laboratory.model.training)]
        found[laboratory.model.name] = measure(laboratory, labels, judge, args.seeds)
    shaped = [row for part in found.values() for row in part["rows"] if "tests" in row]
    adjusted = holm(test for row in shaped for test in row["tests"])
    for row in shaped:
        row["tests"] = [adjusted[test.name] for test in row["tests"]]
    plot(found, args.output / "results" / "matched_launch.png")
    head = (
        "Gains are the ratio of the speed that the network has on noised training images to that on its own path. "
        "F_mem of all seeds together with the exact interval; FD is the mean of the seeds. Changes on the same noises with "
        "95 % intervals and p-values adjusted for all tests of the page (Holm).\n\n![Gains](matched_launch.png)"
    )
    text = "\n\n".join([head, *(describe(name, part["rows"]) for name, part in found.items())])
    for part in found.values():
        part["rows"] = [
            row | {"verdict": row["verdict"].to_dict(), "tests": [asdict(test) for test in row.get("tests", [])]}
            for row in part["rows"]
        ]
    result = {"num_samples": args.num_samples, "seeds": args.seeds, "environment": environment(began), "models": found}
    write_page(args.output, "matched_launch", text, result)


if __name__ == "__main__":
    main()
