"""The charts of the demo as SVG: small, drawn in a millisecond, colored by the page's light or dark theme through CSS."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from .limits import Shaping

if TYPE_CHECKING:  # the first page is drawn without torch
    from ..kpe.trace import KPETrace

WIDTH, HEIGHT = 640, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40


class Axes:
    """A rectangle of data coordinates with ticks and labels; parts are added as SVG."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], xlabel: str, ylabel: str, height: int = HEIGHT) -> None:
        self.x_range, self.y_range, self.height = x, y, height
        self.parts: list[str] = []
        for value in _ticks(*x):
            px = self.x(value)
            self.add(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
            self.text(px, height - BOTTOM + 15, f"{value:g}", "middle")
        for value in _ticks(*y):
            py = self.y(value)
            self.add(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
            self.text(LEFT - 6, py + 4, f"{value:g}", "end")
        self.text((LEFT + WIDTH - RIGHT) / 2, height - 6, xlabel, "middle", "label")
        middle = (TOP + height - BOTTOM) / 2
        turn = f'transform="rotate(-90 14 {middle:.0f})"'
        self.add(f'<text class="label" x="14" y="{middle:.0f}" text-anchor="middle" {turn}>{escape(ylabel)}</text>')

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, px: float, py: float, words: str, anchor: str = "start", kind: str = "tick") -> None:
        self.add(f'<text class="{kind}" x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        self.add(f'<polyline class="{kind}" points="{self.path(points)}"/>')

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def upright(self, x: float, words: str, row: int = 0) -> None:
        """A dotted line across, with its name in a ``row`` from the top."""
        px = self.x(x)
        self.add(f'<line class="mark" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{self.height - BOTTOM}"/>')
        left = px > WIDTH - 150
        self.text(px - 5 if left else px + 5, TOP + 11 + 15 * row, words, "end" if left else "start")

    def svg(self, title: str) -> str:
        body = "".join(self.parts)
        return (
            f'<svg class="kts-chart" viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>{body}</svg>"
        )


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 2))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _padded(values: Sequence[float], least: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), (least - (high - low)) / 2)
    return low - pad, high + pad


def gain_chart(shaping: Shaping, times: Sequence[float] | None) -> str:
    """eta(t), a mark where each network call is made: round in the launch, square in the landing, a triangle at touchdown.

    Args:
        shaping: the settings.
        times: flow times of the network calls; without them the curve alone.
    """
    grid = np.linspace(0, 1, 121)
    split = shaping.tau_split
    curve = [(t, shaping.eta(t)) for t in sorted({*grid.tolist(), split - 1e-9, split})]
    steps = [(t, 1.0 if t >= shaping.touchdown else shaping.eta(t)) for t in times or ()]
    axes = Axes(
        (0, 1), _padded([1.0, *(eta for _, eta in [*curve, *steps])], 0.02), "flow time t (0 noise, 1 image)", "eta(t)"
    )
    if axes.y_range[0] < 0:  # where the velocity runs backwards
        top, bottom = axes.y(0), axes.y(axes.y_range[0])
        axes.add(f'<rect class="unsafe" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - top:.1f}"/>')
    axes.line([(0, 1), (1, 1)], "mark")
    if shaping.touchdown < 1:
        axes.upright(shaping.touchdown, f"touchdown {shaping.touchdown:g}", row=1)
    axes.upright(split, f"tau_split {split:g}")  # last, so that no line crosses its name
    axes.line([(t, eta) for t, eta in curve if t <= shaping.touchdown], "line shaped")
    landing = 0
    for t, eta in steps:
        px, py = axes.x(t), axes.y(eta)
        if t >= shaping.touchdown:
            axes.add(f'<path class="step touch" d="M{px - 6:.1f} {py - 6:.1f}h12l-6 11z"/>')
        elif t < split:
            axes.add(f'<circle class="step launch" cx="{px:.1f}" cy="{py:.1f}" r="2.6"/>')
        else:
            landing += 1
            axes.add(f'<rect class="step landing" x="{px - 3:.1f}" y="{py - 3:.1f}" width="6" height="6"/>')
    title, note = "Gain eta of flow time", "the steps are marked once the model is loaded"
    if times is not None:
        title += f": {len(times)} network calls, {landing} in the landing"
        note = f"{len(times)} network calls · ● launch {len(times) - landing - (shaping.touchdown < 1)} · ■ landing {landing}"
        note += " · ▼ touchdown" if shaping.touchdown < 1 else ""
    warning = ""
    if shaping.excess > 1:
        limit = shaping.beta_0 / shaping.excess
        warning = (
            f'<p class="kts-warning" role="alert">⚠ Unsafe: beta_0 {shaping.beta_0:g} is above {limit:.4f}, '
            "the velocity would reverse near t = 1. Generate is refused.</p>"
        )
    return f'<figure class="kts-figure">{axes.svg(title)}<figcaption>{note}</figcaption>{warning}</figure>'


def power_chart(traces: Mapping[str, "KPETrace"]) -> str:
    """Power per dimension along the path, median and 10-90 % band of the images; the area below is twice the energy."""
    curves = {}
    for name, trace in traces.items():
        power = trace.path_power.double().numpy() / trace.d
        power = np.where(np.isfinite(power), power, np.nan)
        low, median, high = np.nanquantile(power, (0.1, 0.5, 0.9), axis=0)
        t = trace.t.tolist()
        curves[name] = [_held(t, values) for values in (low, median, high)]
    top = max(y for bands in curves.values() for _, y in bands[2]) * 1.05 or 1.0
    axes = Axes((0, 1), (0.0, top), "flow time t (0 noise, 1 image)", "power per dimension")
    for i, (low, median, high) in enumerate(curves.values()):
        kind = ("plain", "shaped")[i % 2]
        axes.add(f'<polygon class="band {kind}" points="{axes.path([*high, *low[::-1]])}"/>')
        axes.line(median, f"line {kind}")
    legend = " · ".join(f'<b class="key {("plain", "shaped")[i % 2]}">{escape(name)}</b>' for i, name in enumerate(curves))
    svg = axes.svg("Power along the path of " + " and ".join(curves))
    return f'<figure class="kts-figure">{svg}<figcaption>{legend} · median and 10–90 % of the images</figcaption></figure>'


def _held(t: Sequence[float], values: np.ndarray) -> list[tuple[float, float]]:
    """Each step drawn as long as it lasts."""
    points = []
    for i, value in enumerate(values.tolist()):
        points += [(t[i], value), (t[i + 1], value)]
    return points


def scatter_chart(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ylabel: str,
    name: Callable[[str, int], str],
    threshold: float | None = None,
) -> str:
    """A point per image, each a button: energy per dimension across, ``y`` upwards.

    Args:
        name: of the x axis.
        ylabel: of the y axis.
        groups: (x, y) of the images by sampler, plain first.
        threshold: of d1/d2, where ``y`` is that: what lies below it is memorized.
    """
    xs = [x for pair in groups.values() for x in pair[0]]
    ys = [y for pair in groups.values() for y in pair[1]]
    low, high = _padded(ys, 1e-3)
    if threshold is not None:
        low, high = 0.0, 1.02
    axes = Axes(_padded(xs, 1e-3), (low, high), "kinetic path energy per dimension", ylabel, height=360)
    if threshold is not None:
        axes.line([(axes.x_range[0], threshold), (axes.x_range[1], threshold)], "mark")
        axes.text(WIDTH - RIGHT - 4, axes.y(threshold) - 5, "memorized below 1/3", "end")
    for g, (group, (x, y)) in enumerate(groups.items()):
        for i, (px, py) in enumerate(zip(x, y, strict=True)):
            label = f'tabindex="0" role="button" data-point="{g}-{i}" aria-label="{escape(name(group, i))}"'
            cx, cy = axes.x(px), axes.y(py)
            if g == 0:
                axes.add(f'<circle class="point plain" {label} cx="{cx:.1f}" cy="{cy:.1f}" r="5"/>')
            else:
                axes.add(f'<rect class="point shaped" {label} x="{cx - 4.5:.1f}" y="{cy - 4.5:.1f}" width="9" height="9"/>')
    legend = " · ".join(
        f'<b class="key {("plain", "shaped")[i % 2]}">{"●■"[i % 2]} {escape(group)}</b>' for i, group in enumerate(groups)
    )
    return f'<figure class="kts-figure">{axes.svg("Energy against " + ylabel)}<figcaption>{legend}</figcaption></figure>'
