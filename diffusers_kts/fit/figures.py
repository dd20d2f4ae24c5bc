"""The charts of a fit's report."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ..kpe.plot import STYLES
from .errors import FITTED, Error

MORE = (("#56B4E9", "-."), ("#E69F00", ":"))


def plot_errors(found: Mapping[int, Mapping[str, Error]]) -> Figure:
    """Mean error with its interval against the number of network calls, a line for each sampler."""
    figure = Figure(figsize=(6.6, 4), layout="constrained")
    ax = figure.subplots()
    names = dict.fromkeys(name for errors in found.values() for name in errors)
    for name, (color, line) in zip(names, (*STYLES, *MORE), strict=False):
        counts = sorted(n for n in found if name in found[n])
        errors = [found[n][name] for n in counts]
        means = [e.mean for e in errors]
        bars = [[e.mean - e.low for e in errors], [e.high - e.mean for e in errors]]
        width = 2.4 if name == FITTED else 1.2
        ax.errorbar(counts, means, bars, color=color, linestyle=line, marker="o", label=name, linewidth=width, elinewidth=0.7)
    ax.set(xlabel="network calls", ylabel="RMS distance to the teacher", yscale="log")
    ax.set_xticks(sorted(found), [str(n) for n in sorted(found)])
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def plot_grids(times: Sequence[float], acceleration: Sequence[float], fits: Mapping[int, Mapping[str, Any]]) -> Figure:
    """The acceleration, the flow times of each grid, and the sum of each step's weights."""
    figure = Figure(figsize=(9.5, 2.6 + 0.22 * len(fits)), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.stairs(acceleration, times, color="black")
    left.set(xlabel="flow time", ylabel="acceleration", yscale="log", title="How fast the velocity turns, and the grids")
    top = max(acceleration)
    for row, (steps, fit) in enumerate(sorted(fits.items())):
        color, _ = STYLES[row % len(STYLES)]
        left.plot(fit["flow_times"], [top * 1.5 * 1.6**row] * (steps + 1), "|", color=color, markersize=9)
        gains = [sum(weights) for weights in fit["weights"]]
        right.step(fit["flow_times"], [*gains, gains[-1]], where="post", color=color, label=f"{steps} steps")
    right.axhline(1, color="0.7", linewidth=1)
    right.set(xlabel="flow time", ylabel="sum of the weights", title="The gain of each step")
    right.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure
