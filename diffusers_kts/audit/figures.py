"""The charts of an audit's report; pictures of samples and power come from `plotting`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from ..kpe.plot import STYLES
from ..plotting import MARK, show_images
from .measures import STATISTICS, Findings, deciles

MORE_STYLES = (("#56B4E9", "-"), ("#E69F00", "--"), ("#0072B2", ":"))  # Okabe and Ito's other two, and one once more


def plot_shares(found: Mapping[str, Findings], labels: Mapping[str, str]) -> Figure:
    """F_mem of every sampler with its exact 95 % interval, and plain sampling's interval as a band."""
    figure = Figure(figsize=(6.4, 0.36 * len(found) + 0.9), layout="constrained")
    ax = figure.subplots()
    plain = found["euler"].f_mem
    ax.axvspan(100 * plain.low, 100 * plain.high, color="0.92", linewidth=0)
    for row, (name, findings) in enumerate(found.items()):
        f = findings.f_mem
        ax.plot([100 * f.low, 100 * f.high], [row, row], color="black", linewidth=1.4)
        ax.plot(100 * f.fraction, row, "o", color="black" if name in ("euler", "kts", "touchdown") else "white", mec="black")
    ax.set_yticks(range(len(found)), [labels[name] for name in found])
    ax.set(xlabel="memorized samples, % (95 % interval; shaded: plain)", ylim=(len(found) - 0.5, -0.5))
    ax.set_xlim(left=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure


def plot_energies(found: Mapping[str, Findings], labels: Mapping[str, str]) -> Figure:
    """Distribution of the path energy per dimension: total, before and after ``tau_split``, by sampler."""
    own = {name: findings for name, findings in found.items() if findings.trace is not None}
    figure = Figure(figsize=(9, 0.4 * len(own) + 1.1), layout="constrained")
    for ax, part in zip(figure.subplots(1, 3, sharey=True), ("total", "early", "late"), strict=True):
        columns = [_finite(getattr(f.trace.path_energy.per_dim, part)) for f in own.values() if f.trace is not None]
        ax.boxplot(columns, orientation="horizontal", whis=(5, 95), showfliers=False, widths=0.5, medianprops={"color": MARK})
        ax.set(title=part, xlabel="energy per dimension")
        ax.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_yticks(range(1, len(own) + 1), [labels[name] for name in own])
    first.invert_yaxis()
    return figure


def plot_groups(plain: Findings) -> Figure:
    """Energies of memorized and of other plain samples, and the ROC curve of every statistic of the trajectory."""
    memorized = plain.memorization.is_memorized
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(list(STATISTICS)[:3]):
        values = plain.statistics[name] / (plain.trace.d if plain.trace is not None else 1)
        _pair(left, i, _finite(values[memorized]), _finite(values[~memorized]))
    left.set_xticks(range(3), ["total", "early", "late"])
    left.set(ylabel="path energy per dimension", title="Energy of memorized (filled) and other samples")
    left.spines[["top", "right"]].set_visible(False)
    right.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for (name, separation), (color, line) in zip(plain.separations.items(), (*STYLES, *MORE_STYLES), strict=False):
        values = plain.statistics[name]
        finite = values.isfinite()
        false, true, _ = roc_curve(memorized[finite].numpy(), values[finite].numpy())
        right.plot(false, true, color=color, linestyle=line, linewidth=1.5, label=f"{name}, AUC {separation.auc:.2f}")
    right.set(
        xlabel="other samples above the limit", ylabel="memorized samples above it", title="ROC of trajectory statistics"
    )
    right.set_aspect("equal")
    right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_steps(found: Mapping[str, Findings], steps: Mapping[str, int], limit: float, chosen: str | None) -> Figure:
    """F_mem of every checkpoint with its exact 95 % interval, against the training step; below it the Frechet distance, and
    the path energy per dimension with its 10 to 90 % band."""
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    above, below, lowest = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    x, shares = [steps[name] for name in found], [findings.f_mem for findings in found.values()]
    reach = [[100 * (f.fraction - f.low) for f in shares], [100 * (f.high - f.fraction) for f in shares]]
    above.errorbar(x, [100 * f.fraction for f in shares], reach, color="black", linewidth=1.2, capsize=3)
    above.axhline(100 * limit, color=MARK, linestyle="--", linewidth=1.2)
    for name, findings in found.items():
        face = "black" if name == chosen else "white"
        above.plot(steps[name], 100 * findings.f_mem.fraction, "o", color="black", mfc=face, zorder=3)
    below.plot(x, [findings.frechet_distance for findings in found.values()], "o-", color="black", mfc="white", linewidth=1.2)
    above.set(ylabel="memorized, %")
    above.set_ylim(bottom=0)
    below.set(ylabel="Frechet distance")
    energies = [deciles(f.trace.path_energy.per_dim.total) if f.trace is not None else None for f in found.values()]
    low, median, high = ([np.nan if e is None else e[name] for e in energies] for name in ("p10", "median", "p90"))
    lowest.fill_between(x, low, high, color="black", alpha=0.12, linewidth=0)
    lowest.plot(x, median, "o-", color="black", mfc="white", linewidth=1.2)
    lowest.set(xlabel="training step", ylabel="energy per dim")
    for ax in (above, below, lowest):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def plot_reproduced(
    samples: torch.Tensor, training: torch.Tensor, reproduced: Sequence[Mapping[str, Any]], columns: int = 8
) -> Figure:
    """A row per training image: the image, then samples that repeat it."""
    figure = Figure(figsize=(1.1 * (columns + 1), 1.15 * len(reproduced)), layout="constrained")
    grid = figure.subplots(len(reproduced), columns + 1, squeeze=False)
    for line, row in zip(grid, reproduced, strict=True):
        show_images(line, [training[row["training_image"]], *samples[row["samples"][:columns]]])
        line[0].set_title(f"{len(row['samples'])} times", fontsize=9)
    return figure


def plot_pairs(training: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> Figure:
    """Pairs of training images, one above the other."""
    figure = Figure(figsize=(1.1 * len(pairs), 2.3), layout="constrained")
    grid = figure.subplots(2, len(pairs), squeeze=False)
    for i, pair in enumerate(pairs):
        show_images([*grid[:, i]], [*training[list(pair)]])
    return figure


def _pair(ax: Axes, x: float, memorized: np.ndarray, other: np.ndarray) -> None:
    for shift, values, color in ((-0.17, memorized, MARK), (0.17, other, "white")):
        if len(values):
            box = ax.boxplot(
                [values], positions=[x + shift], widths=0.28, whis=(5, 95), showfliers=False, patch_artist=True,
                medianprops={"color": "black"},
            )  # fmt: skip
            box["boxes"][0].set_facecolor(color)


def _finite(values: torch.Tensor) -> np.ndarray:
    return values[values.isfinite()].double().numpy()
