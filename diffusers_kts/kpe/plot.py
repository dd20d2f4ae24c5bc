"""Power against flow time.

The figure is its own `matplotlib.figure.Figure`, so that nothing here touches pyplot's global state.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1 import make_axes_locatable

if TYPE_CHECKING:
    from .trace import KPETrace

# Okabe and Ito's colors, which the color-blind tell apart; the line style says the same again
STYLES = (("#000000", "-"), ("#0072B2", "--"), ("#D55E00", "-."), ("#009E73", (0, (5, 1, 1, 1, 1, 1))), ("#CC79A7", ":"))


def plot_power(traces: Mapping[str, "KPETrace"], ax: Axes | None = None) -> Axes:
    """Squared speed ``eta^2 ||v||^2`` against flow time, median and 10-90 % band of the samples, with eta in a panel below.

    Each step is drawn as long as it lasts, so the area below a curve is twice the path energy. The label names the median
    share of the energy that is `KPETrace.excess`, where it is recorded.

    Args:
        traces (`Mapping[str, "KPETrace"]`): what to compare, by label.
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
        if trace.displacement is not None:
            label += f" (excess {(trace.excess / trace.with_quadrature('left').path_energy.total).nanmedian():.1%})"
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
