"""The results of the demo as HTML: images go inside it as data, so nothing is written to disk for them."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from .charts import power_chart, scatter_chart

if TYPE_CHECKING:  # the first page is drawn without torch
    import torch

    from .model import Drawn

LARGEST_EXACT = 64  # pixels of a side; larger images are sent as JPEG


def picture(image: "torch.Tensor", alt: str, kind: str = "") -> str:
    """An ``<img>`` of a (C, H, W) image in [0, 1] with one or three channels."""
    pixels = (image.clamp(0, 1) * 255).round().byte()
    shown = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy())
    exact, data = max(image.shape[1:]) <= LARGEST_EXACT, io.BytesIO()
    shown.save(data, "PNG" if exact else "JPEG", **({} if exact else {"quality": 90}))
    coded = base64.b64encode(data.getvalue()).decode()
    form = "png" if exact else "jpeg"
    kind = f"{kind} exact" if exact else kind
    return f'<img class="{kind.strip()}" alt="{escape(alt)}" src="data:image/{form};base64,{coded}">'


def ratio(drawn: "Drawn", i: int) -> float:
    assert drawn.found is not None
    d1, d2 = drawn.found.distances[i].tolist()
    return d1 / d2 if d2 else 0.0


def comparison(results: Mapping[str, "Drawn"], training: "torch.Tensor | None", names: Sequence[str]) -> str:
    """Plain and shaped images of the same noise side by side, with neighbors, numbers and energy curves."""
    count = len(names)
    pairs = "".join(_pair(results, training, i, names[i]) for i in range(count))
    big = max(next(iter(results.values())).images.shape[2:]) > LARGEST_EXACT
    return (
        f"{_table(results)}<div class='kts-pairs{' big' if big else ''}'>{pairs}</div>"
        f"<h3>Energy along the path</h3>{power_chart({name: drawn.trace for name, drawn in results.items()})}"
    )


def _pair(results: Mapping[str, "Drawn"], training: "torch.Tensor | None", i: int, name: str) -> str:
    halves = "".join(_half(sampler, drawn, training, i, name) for sampler, drawn in results.items())
    label = f'aria-label="image {i}, {escape(name)}"'
    return f'<article class="kts-pair" {label}><h4>{escape(name)}</h4><div>{halves}</div></article>'


def _half(sampler: str, drawn: "Drawn", training: "torch.Tensor | None", i: int, name: str) -> str:
    copied = drawn.found is not None and bool(drawn.found.is_memorized[i])
    shown = picture(drawn.images[i], f"{name}, {sampler}", "drawn memorized" if copied else "drawn")
    return f"<figure><figcaption>{escape(sampler)}</figcaption>{shown}{_nearest(drawn, training, i)}</figure>"


def _nearest(drawn: "Drawn", training: "torch.Tensor | None", i: int) -> str:
    energy = f"<span>energy {drawn.trace.per_dim[i]:.3f}, excess {drawn.trace.excess_per_dim[i]:.3f}</span>"
    if drawn.found is None or training is None:
        return f'<div class="facts">{energy}</div>'
    first, second = drawn.found.indices[i].tolist()
    d1, d2 = drawn.found.distances[i].tolist()
    near = picture(training[first], f"nearest training image, distance {d1:.2f}", "near")
    near += picture(training[second], f"second nearest training image, distance {d2:.2f}", "near")
    memorized = bool(drawn.found.is_memorized[i])
    verdict = f'<b class="{"copied" if memorized else ""}">d1/d2 {ratio(drawn, i):.2f}{" memorized" if memorized else ""}</b>'
    return f'<div class="nearest">{near}</div><div class="facts">{verdict}{energy}</div>'


def _table(results: Mapping[str, "Drawn"]) -> str:
    """A column per sampler, which fits a phone."""
    rows = dict[str, list[str]]()
    for drawn in results.values():
        energy, excess = drawn.trace.path_energy.per_dim, drawn.trace.excess_per_dim
        numbers = {"network calls": str(drawn.trace.num_steps)}
        parts = {"energy per dim": energy.total, "early": energy.early, "late": energy.late, "excess": excess}
        numbers |= {name: f"{value.nanmean():.3f}" for name, value in parts.items()}
        if drawn.found is not None:
            numbers["memorized"] = f"{drawn.found.f_mem.count} of {drawn.found.f_mem.n}"
        for name, text in numbers.items():
            rows.setdefault(name, []).append(f"<td>{text}</td>")
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in results)
    body = "".join(f"<tr><th scope='row'>{name}</th>{''.join(cells)}</tr>" for name, cells in rows.items())
    return f'<div class="kts-scroll"><table class="kts-table"><tr><td></td>{head}</tr>{body}</table></div>'


def sweep(axis_x: str, xs: Sequence[float], axis_y: str, ys: Sequence[float], cells: Mapping[tuple[int, int], "Drawn"]) -> str:
    """A grid of images over two settings, all of the same noise."""
    head = "".join(f"<th scope='col'>{x:.3g}</th>" for x in xs)
    rows = ""
    for row, y in enumerate(ys):
        images = ""
        for column, x in enumerate(xs):
            drawn = cells[row, column]
            facts = f"{drawn.trace.per_dim[0]:.3f}" + ("" if drawn.found is None else f" · d1/d2 {ratio(drawn, 0):.2f}")
            copied = drawn.found is not None and bool(drawn.found.is_memorized[0])
            shown = picture(drawn.images[0], f"{axis_x} {x:.3g}, {axis_y} {y:.3g}", "drawn memorized" if copied else "drawn")
            images += f"<td>{shown}<small>{facts}</small></td>"
        rows += f"<tr><th scope='row'>{y:.3g}</th>{images}</tr>"
    caption = f"{escape(axis_x)} across, {escape(axis_y)} down; below each image its energy per dimension"
    table = f"<caption>{caption}</caption><tr><th></th>{head}</tr>{rows}"
    return f'<div class="kts-scroll"><table class="kts-sweep">{table}</table></div>'


def population(results: Mapping[str, "Drawn"], training: "torch.Tensor | None", names: Sequence[str]) -> str:
    """Energy against d1/d2, a point per image; the details of every point lie hidden in the page until it is chosen."""
    found = next(iter(results.values())).found
    groups, details = {}, ""
    for g, (sampler, drawn) in enumerate(results.items()):
        energy = drawn.trace.path_energy
        y = [ratio(drawn, i) for i in range(len(names))] if found else (energy.late / energy.total).tolist()
        groups[sampler] = (drawn.trace.per_dim.tolist(), y)
        for i, name in enumerate(names):
            half = f"<h4>{escape(name)}, image {i}</h4>{_half(sampler, drawn, training, i, name)}"
            details += f'<div class="kts-detail" data-detail="{g}-{i}" hidden>{half}</div>'
    ylabel, threshold = ("d1/d2", found.threshold) if found else ("late share of the energy", None)
    chart = scatter_chart(groups, ylabel, lambda sampler, i: f"{sampler}: {names[i]}, image {i}", threshold)
    hint = '<p class="kts-hint">Choose a point: click it, or Tab to it and press Enter.</p>'
    return f'{_table(results)}{chart}<div class="kts-chosen" aria-live="polite">{hint}{details}</div>'
