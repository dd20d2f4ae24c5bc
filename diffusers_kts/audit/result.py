"""What an audit returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measures import Findings

FORMAT = {"format": "diffusers-kts/audit", "version": 1}  # of report.json, described by report.schema.json


@dataclass
class AuditResult:
    """What an audit found: by sampler or checkpoint, in words, as written, and where; ``notes`` are remarks for the reader."""

    findings: dict[str, Findings]
    verdict: list[str]
    report: dict[str, Any]
    files: list[Path]
    notes: list[str]
