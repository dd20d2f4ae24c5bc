"""``report.html`` of a fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..page import png, render, svg
from ..plotting import plot_samples
from .errors import FITTED, Error
from .figures import plot_errors, plot_grids

TEMPLATE = Path(__file__).with_suffix(".html")
SHOWN = 8
PICTURED = ("teacher", FITTED, "Euler", "UniPC 2")


@dataclass(frozen=True)
class Fitted:
    """A fit for one number of steps: how it was made, errors by sampler, and pixels (B, ..., H, W, C) of the same noises."""

    steps: int
    about: dict[str, Any]
    errors: dict[str, Error]
    pixels: dict[str, torch.Tensor]


def write_report(path: Path, model: str, report: Mapping[str, Any], found: Sequence[Fitted]) -> None:
    """Write the page: ``report`` is what goes into ``report.json``."""
    curve = report["acceleration"]
    html = render(
        TEMPLATE,
        model=model,
        settings=report["settings"],
        history=report["history"],
        verdict=report["verdict"],
        notes=report["notes"],
        errors=svg(plot_errors({each.steps: each.errors for each in found})),
        grids=svg(plot_grids(curve["flow_times"], curve["values"], {each.steps: each.about["fit"] for each in found})),
        fits=[_fit(each) for each in found],
    )
    path.write_text(html, encoding="utf-8")


def _fit(fitted: Fitted) -> dict[str, Any]:
    images = {name: _images(fitted.pixels[name])[:SHOWN] for name in PICTURED if name in fitted.pixels}
    return {
        "steps": fitted.steps,
        "exponent": fitted.about["exponent"],
        "shrinkage": fitted.about["shrinkage"],
        "rows": [(name, error) for name, error in fitted.errors.items()],
        "times": fitted.about["fit"]["flow_times"],
        "weights": fitted.about["fit"]["weights"],
        "pictures": png(plot_samples(images, columns=4), f"samples of {fitted.steps} steps: {', '.join(images)}"),
    }


def _images(pixels: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) of pictures, or of the middle frames of videos."""
    if pixels.ndim == 5:
        pixels = pixels[:, pixels.shape[1] // 2]
    return pixels.movedim(-1, 1)
