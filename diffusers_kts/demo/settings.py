"""The settings of ``kts demo``."""

from dataclasses import dataclass
from pathlib import Path

from ..sampling.comparison import ComparisonSettings
from ..sampling.settings import inherited


@dataclass(frozen=True)
class DemoSettings(ComparisonSettings):
    """The settings of `run_demo`; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is out of range.
    """

    output: Path = inherited(ComparisonSettings, "output", Path("kts-demo"), help="Folder for pictures and tables.")
