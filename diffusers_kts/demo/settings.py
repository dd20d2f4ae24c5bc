"""The settings of ``kts demo``."""

from dataclasses import dataclass
from pathlib import Path

from ..models import SHOWN_FIRST
from ..sampling.comparison import ComparisonSettings
from ..sampling.settings import inherited


@dataclass(frozen=True)
class DemoSettings(ComparisonSettings):
    """The settings of `run_demo`; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is out of range.
    """

    model: str = inherited(ComparisonSettings, "model", SHOWN_FIRST)
    num_samples: int = inherited(ComparisonSettings, "num_samples", 32)
    num_inference_steps: int = inherited(ComparisonSettings, "num_inference_steps", 28)
    output: Path = inherited(ComparisonSettings, "output", Path("kts-demo"), help="Folder for pictures and tables.")
