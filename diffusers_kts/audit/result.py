"""What an audit returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .card import write_card
from .measures import Findings
from .settings import AuditSettings

FORMAT = {"format": "diffusers-kts/audit", "version": 1}  # of report.json, described by report.schema.json


@dataclass
class AuditResult:
    """What an audit found: by sampler or checkpoint, in words, as written, and where; ``notes`` are remarks for the reader."""

    findings: dict[str, Findings]
    verdict: list[str]
    report: dict[str, Any]
    files: list[Path]
    notes: list[str]


def finished(settings: AuditSettings, result: AuditResult) -> AuditResult:
    """The result, once it stands in the model's card where one was named."""
    if settings.card is not None:
        write_card(settings.card, result.report)
        result.files.append(settings.card)
    return result
