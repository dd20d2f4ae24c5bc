"""Pictures: grids of samples, samples and their nearest training images, and
the settings of a study.

Every figure is its own `matplotlib.figure.Figure`, so that nothing here touches pyplot's global state:
``plot_power(traces).figure.savefig("energy.png")``.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .kpe.plot import STYLES
from .memorization.fraction import THRESHOLD

MARK = "#D55E00"


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
        distances (`Mapping[str, torch.Tensor]`, each (B, 2)): from `nearest_neighbors`, by heading.
        indices (`Mapping[str, torch.Tensor]`, each (B, 2)): likewise.
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
            show_images(line, [batch[i], *training[indices[heading][i]]])
            ratio = d1 / d2 if d2 else 0.0
            if ratio < threshold:
                height, width = batch.shape[-2:]
                line[0].add_patch(_frame(0, 0, width, height))
            color = MARK if ratio < threshold else "0.35"
            line[0].text(-0.08, 0.5, f"{ratio:.2f}", transform=line[0].transAxes, ha="right", va="center", color=color)
    return figure


def show_images(line: Sequence[Axes], images: Sequence[torch.Tensor]) -> None:
    """(C, H, W) images in [0, 1] on one axes each; further axes stay empty."""
    for axes in line:
        axes.set_axis_off()
    for axes, image in zip(line, images, strict=False):
        axes.imshow(_pixels(image), interpolation="nearest")


def plot_front(
    values: Sequence[Sequence[float]], front: Sequence[int], plain: Sequence[float], labels: Sequence[str], chosen: int | None
) -> Figure:
    """Settings on the plane of every two objectives, with the front among them; a single objective in the order tried.

    Args:
        values: a row of objectives for each setting.
        front: which of them no other dominates.
        plain: the objectives of plain sampling.
        labels: names of the objectives.
        chosen: the setting that was tried on fresh samples.
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
