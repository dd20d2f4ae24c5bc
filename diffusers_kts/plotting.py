"""Pictures: power against flow time, grids of samples, samples beside their nearest training images, and
the settings of a study.

Every figure is a `matplotlib.figure.Figure` of its own, so that nothing here touches pyplot's global state:
``plot_power(traces).figure.savefig("energy.png")``.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1 import make_axes_locatable

from .kpe.trace import KPETrace
from .memorization.fraction import THRESHOLD

# Okabe and Ito's colours, which the colour-blind tell apart; the line style says the same again
STYLES = (("#000000", "-"), ("#0072B2", "--"), ("#D55E00", "-."), ("#009E73", (0, (5, 1, 1, 1, 1, 1))), ("#CC79A7", ":"))
MARK = "#D55E00"


def plot_power(traces: Mapping[str, KPETrace], ax: Axes | None = None) -> Axes:
    """Squared speed ``eta^2 ||v||^2`` against flow time, median and 10-90 % band of the samples, with eta in a panel below.

    Each step is drawn as long as it lasts, so the area below a curve is twice the path energy.

    Args:
        traces (`Mapping[str, KPETrace]`): what to compare, by label.
        ax (`matplotlib.axes.Axes`, *optional*): where to draw; the panel of eta is cut off its lower end.

    Returns:
        The axes of the power (units: squared latent units).

    Raises:
        ValueError: no trace.
    """
    if not traces:
        raise ValueError("there is no trace to plot; give at least one.")
    if ax is None:
        ax, below = Figure(figsize=(8, 5), layout="constrained").subplots(2, 1, sharex=True, height_ratios=(3, 1))
    else:
        below = make_axes_locatable(ax).append_axes("bottom", size="30%", pad=0.12, sharex=ax)
    for i, (label, trace) in enumerate(traces.items()):
        color, line = STYLES[i % len(STYLES)]
        t = trace.t.numpy()
        power = trace.path_power.numpy()
        low, median, high = np.nanquantile(np.where(np.isfinite(power), power, np.nan), (0.1, 0.5, 0.9), axis=0)
        ax.fill_between(t, _hold(low), _hold(high), step="post", color=color, alpha=0.13, linewidth=0)
        ax.step(t, _hold(median), where="post", color=color, linestyle=line, label=label, linewidth=1.6)
        if trace.settings.get("touchdown") is not None:
            ax.plot(t[-2], median[-1], "o", color=color, markersize=5)  # from here one step to the end
        eta = trace.gains.numpy()
        below.step(t, _hold(eta if eta.ndim == 1 else np.median(eta, 0)), where="post", color=color, linestyle=line)
    for tau in sorted({trace.tau_split for trace in traces.values()}):
        for axes in (ax, below):
            axes.axvline(tau, color="0.45", linewidth=1, linestyle=":")
        ax.text(tau, 0.98, f" tau_split = {tau:g}", color="0.35", va="top", transform=ax.get_xaxis_transform(), fontsize=9)
    ax.set(ylabel="power (squared speed of a sample)", title="Power along the path (median, 10-90 % band)")
    ax.set_ylim(0, 1.12 * ax.get_ylim()[1])  # room for the marks, also above a constant power
    ax.tick_params(labelbottom=False)
    ax.legend(frameon=False, fontsize=9)
    below.set(xlim=(0, 1), xlabel="flow time t   (0 noise, 1 image)", ylabel="gain eta")
    below.ticklabel_format(useOffset=False)
    return ax


def _hold(values: np.ndarray) -> np.ndarray:
    """The value of the last step, once more: it holds until the step ends."""
    return np.append(values, values[-1])


def plot_samples(
    images: Mapping[str, torch.Tensor], marked: Mapping[str, torch.Tensor] | None = None, title: str = "", columns: int = 8
) -> Figure:
    """Grids side by side, the same sample in the same place.

    Args:
        images (`Mapping[str, torch.Tensor]`, each (B, C, H, W) in [0, 1]): by heading.
        marked (`Mapping[str, torch.Tensor]`, each (B,) bool, *optional*): which samples to frame, by the same headings.
        title (`str`): above all grids.
        columns (`int`, defaults to 8): samples in a row of each grid.
    """
    count = max(len(batch) for batch in images.values())
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * len(images), 4.2 * rows / columns + 0.75), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    for axes, (heading, batch) in zip(figure.subplots(1, len(images), squeeze=False)[0], images.items(), strict=True):
        _grid(axes, batch, columns, marked[heading] if marked else torch.zeros(len(batch), dtype=torch.bool))
        axes.set_title(heading, fontsize=12)
    return figure


def _grid(axes: Axes, batch: torch.Tensor, columns: int, marked: torch.Tensor) -> None:
    pixels = [_pixels(image) for image in batch]
    height, width, gap = *pixels[0].shape[:2], 3
    rows = -(-len(pixels) // columns)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for i, image in enumerate(pixels):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        canvas[y : y + height, x : x + width] = image
        if marked[i]:
            axes.add_patch(_frame(x, y, width, height))
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()


def plot_neighbors(
    rows: Sequence[int],
    images: Mapping[str, torch.Tensor],
    training: torch.Tensor,
    distances: Mapping[str, torch.Tensor],
    indices: Mapping[str, torch.Tensor],
    title: str = "",
    threshold: float = THRESHOLD,
) -> Figure:
    """Samples, one a row; for every sampler the image drawn, its two nearest training images, and d1/d2.

    Args:
        rows (`Sequence[int]`): which samples to show.
        images (`Mapping[str, torch.Tensor]`, each (B, C, H, W) in [0, 1]): by heading.
        training (`torch.Tensor`, (n, C, H, W) in [0, 1]): the training images.
        distances, indices (`Mapping[str, torch.Tensor]`, each (B, 2)): from `nearest_neighbors`, by heading.
        title (`str`): above everything.
        threshold (`float`, defaults to 1/3): ratio below which a sample is framed as memorized.
    """
    figure = Figure(figsize=(3.6 * len(images), 1.12 * len(rows) + 1.1), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    for part, (heading, batch) in zip(figure.subfigures(1, len(images), squeeze=False)[0], images.items(), strict=True):
        part.suptitle(heading, fontsize=12)
        grid = part.subplots(len(rows), 3, squeeze=False)
        for axes, name in zip(grid[0], ("sample", "nearest", "second"), strict=True):
            axes.set_title(name, fontsize=9, color="0.35")
        for line, i in zip(grid, rows, strict=True):
            d1, d2 = distances[heading][i].tolist()
            for axes, image in zip(line, [batch[i], *training[indices[heading][i]]], strict=True):
                axes.imshow(_pixels(image), interpolation="nearest")
                axes.set_axis_off()
            ratio = d1 / d2 if d2 else 0.0
            if ratio < threshold:
                height, width = batch.shape[-2:]
                line[0].add_patch(_frame(0, 0, width, height))
            color = MARK if ratio < threshold else "0.35"
            line[0].text(-0.08, 0.5, f"{ratio:.2f}", transform=line[0].transAxes, ha="right", va="center", color=color)
    return figure


def plot_front(
    values: Sequence[Sequence[float]], front: Sequence[int], plain: Sequence[float], labels: Sequence[str], chosen: int | None
) -> Figure:
    """Settings on the plane of every two objectives, with the front among them; a single objective in the order tried.

    Args:
        values: a row of objectives for each setting. front: which of them no other dominates. plain: of plain sampling.
        labels: of the objectives. chosen: the setting that was tried on fresh samples.
    """
    alone = len(labels) == 1
    rows = [[i, *row] if alone else list(row) for i, row in enumerate(values, 1)]
    names = ["setting, in the order tried", *labels] if alone else labels
    pairs = list(itertools.combinations(range(len(names)), 2))
    figure = Figure(figsize=(5.2 * len(pairs), 4.4), layout="constrained")
    for axes, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        others = [i for i in range(len(rows)) if i not in front]
        for some, label, style in ((others, "tried", {"color": "0.7"}), (front, "front", {"color": STYLES[1][0]})):
            axes.plot([rows[i][x] for i in some], [rows[i][y] for i in some], "o", label=label, markersize=5, **style)
        if alone:
            axes.axhline(plain[0], color="black", linewidth=1.2, linestyle="--", label="plain")
        else:
            axes.plot(plain[x], plain[y], "s", color="black", label="plain", markersize=7)
        if chosen is not None:
            axes.plot(
                rows[chosen][x], rows[chosen][y], "o", color=MARK, label="candidate", fillstyle="none", markersize=11, mew=2
            )
        axes.set(xlabel=names[x], ylabel=names[y])
        axes.legend(frameon=False, fontsize=9)
    return figure


def _pixels(image: torch.Tensor) -> np.ndarray:
    """(H, W, 3) of a (C, H, W) image with one or three channels."""
    return image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).numpy()


def _frame(x: float, y: float, width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 1, y - 1), width + 1, height + 1, fill=False, edgecolor=MARK, linewidth=2, clip_on=False)
