"""The settings of ``kts audit``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..sampling.comparison import ComparisonSettings
from ..sampling.settings import MEASURES, inherited, setting
from ..shaping import SHAPING


@dataclass(frozen=True)
class AuditSettings(ComparisonSettings):
    """The settings of `run_audit`; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is out of range.
    """

    output: Path = inherited(
        ComparisonSettings, "output", Path("kts-audit"), help="Folder for the report; a stopped audit resumes there."
    )
    num_samples: int = inherited(ComparisonSettings, "num_samples", 1000, least=8)
    num_inference_steps: int = inherited(ComparisonSettings, "num_inference_steps", 100, least=2)
    overwrite: bool = inherited(ComparisonSettings, "overwrite", False, help="Delete an earlier audit first.")
    image_size: int | None = setting(
        None, "Side, in pixels, to which all images are scaled for comparison. Default: as drawn.", MEASURES, least=1
    )
    reference: Path | None = setting(
        None,
        "Held-out real images for Frechet distance, precision and recall. Default: the training images.",
        MEASURES,
        identity=False,
    )
    features: str = setting(
        "auto",
        "Space of these: inception, pixels, auto, module:function, TorchScript or .pt2 file.",
        MEASURES,
    )
    neighbors: str = setting(
        "pixels", "Where the nearest training images are sought.", MEASURES, choices=("pixels", "features")
    )
    threshold: float = setting(1 / 3, "A sample with d1/d2 below it is memorized; above 0, at most 1.", MEASURES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; give a ratio above 0 and at most 1 (the paper uses 1/3).")

    @property
    def identity(self) -> dict[str, Any]:
        """As `Settings.identity`, with the shaping in one place."""
        samplers = self.samplers()
        kts, touchdown = samplers["kts"].shaping, samplers["touchdown"].shaping.touchdown
        free = {"preset", *SHAPING}
        shaping = {"shaping": kts.to_dict(), "touchdown": touchdown}
        return {name: value for name, value in super().identity.items() if name not in free} | shaping
