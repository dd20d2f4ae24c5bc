"""The figure of ``kts theory``."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..kpe.plot import STYLES
from .measures import AtTime, Paths


def plot_theory(found: Mapping[str, Sequence[AtTime]], paths: Paths, paths_in: str) -> Figure:
    """Dominance, bounds, the line of energy and density, and power along paths; ``found`` by coding of the data."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    (dominance, bounds), (line, late) = figure.subplots(2, 2)
    for (coding, rows), (color, style) in zip(found.items(), STYLES, strict=False):
        t = [row.t for row in rows]
        dominance.plot(t, [row.dominant for row in rows], color=color, linestyle=style, label=coding)
        bounds.plot(t, [row.power for row in rows], color=color, linestyle=style, label=f"measured, {coding}")
        bounds.fill_between(t, [row.low for row in rows], [row.high for row in rows], color=color, alpha=0.13, linewidth=0)
        line.plot(t, [row.r2 for row in rows], color=color, linestyle=style, label=coding)
        line.axhline(rows[-1].expected_r2, color=color, linestyle=":", linewidth=1)
    curves = {"closed form": paths.closed, "network": paths.net, "closed form, at the network's states": paths.closed_at_net}
    for (name, power), (color, style) in zip(curves.items(), STYLES, strict=False):
        if power is not None:
            late.plot(paths.t, power, color=color, linestyle=style, label=name)
    dominance.set(title="Posterior dominance", ylabel="share with own weight > .99")
    bounds.set(title="Power of the closed form, and its bounds", ylabel="squared speed per dimension")
    line.set(title="Energy against -log density (dotted: expected under dominance)", ylabel="R² of the line", ylim=(0, 1.05))
    late.set(title=f"Power along paths, {paths_in}", ylabel="squared speed per dimension", yscale="log")
    for ax in (dominance, bounds, line, late):
        ax.set(xlabel="flow time t", xlim=(0, 1))
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    return figure
