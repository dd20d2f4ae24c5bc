"""``kts evaluate``: quality, memorization and energies of images that are there."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import rich
from rich.table import Table

from ..evaluate.settings import EvaluateSettings
from .options import options_of

if TYPE_CHECKING:
    from ..evaluate.job import Evaluation


@options_of(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> None:
    """Measure images against a reference: FID, KID, Inception Score, precision and recall, DINOv2 distance, CLIP score, F_mem,
    energies, and how the energies correlate with every score of a sample."""
    from ..evaluate.job import run_evaluate

    _print(run_evaluate(replace(settings, output=settings.output or Path("kts-evaluation"))))


def _print(found: "Evaluation") -> None:
    table = Table("metric", "value", "95 % or deviation", "samples", "against", "measured with")
    for name, number in found.metrics.items():
        spread = f"{number.low:.4g} to {number.high:.4g}" if number.low is not None else ""
        spread = f"deviation {number.deviation:.4g}" if number.deviation is not None else spread
        against = str(number.reference.get("n") or "") if number.reference else ""
        table.add_row(name, f"{number.value:.7g}", spread, str(number.n), against, number.extractor or "")
    rich.print(table)
    for energy, correlations in (("path energy", found.correlations), ("excess", found.excess_correlations)):
        for name, c in correlations.items():
            interval = f"{c.low:+.3f} to {c.high:+.3f}"
            print(f"Spearman of {energy} with {name}: {c.rho:+.3f} ({interval}), p = {c.p_value:.2g}, n = {c.n}")
    for note in found.notes:
        print(f"Note: {note}")
    print("Written: " + ", ".join(str(path) for path in found.files))
