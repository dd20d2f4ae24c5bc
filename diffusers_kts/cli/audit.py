"""``kts audit``: memorization of a model with the controls of KTS, or of checkpoints."""

from typing import TYPE_CHECKING

import rich
from rich.table import Table

from ..audit.settings import AuditSettings
from .options import options_of

if TYPE_CHECKING:
    from ..audit.job import AuditResult


@options_of(AuditSettings)
def audit(settings: AuditSettings) -> None:
    """Measure memorization: plain, KTS, touchdown and the controls of KTS from the same noises, in one report; or which
    checkpoint of a training is the last that does not memorize."""
    from ..audit.job import run_audit

    _print(run_audit(settings))


def _print(result: "AuditResult") -> None:
    table = Table("sampler", "calls", "F_mem", "vs plain", "p", "Frechet")
    for found in result.findings.values():
        change = found.against_plain
        changed = (f"{100 * change.difference:+.1f}", f"{change.p_value:.2g}") if change else ("", "")
        calls, distance = str(found.network_calls or ""), f"{found.frechet_distance:.4g}"
        table.add_row(found.heading, calls, found.f_mem.in_words, *changed, distance)
    rich.print(table)
    for sentence in result.verdict:
        print(sentence)
    for note in result.notes:
        print(f"Note: {note}")
    print("Written: " + ", ".join(str(path) for path in result.files))
