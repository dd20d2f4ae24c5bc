"""The settings of ``kts audit``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..sampling.comparison import ComparisonSettings
from ..sampling.settings import MEASURES, MODEL, OUTPUT, inherited, setting
from ..shaping import SHAPING


def fewest_samples(limit: float) -> int:
    """How many samples, none of them memorized, bring the exact 95 % interval of F_mem below ``limit``: it ends at
    1 - .025^(1 / n)."""
    return math.floor(math.log(0.025) / math.log1p(-limit)) + 1


def _paths(texts: str | list[str]) -> tuple[Path, ...]:
    return tuple(Path(text) for text in ([texts] if isinstance(texts, str) else texts))


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
        "Space of these: inception, efficientnet-lite0, pixels, auto, module:function, TorchScript or .pt2 file.",
        MEASURES,
    )
    neighbors: str = setting(
        "pixels", "Where the nearest training images are sought.", MEASURES, choices=("pixels", "features")
    )
    threshold: float = setting(1 / 3, "A sample with d1/d2 below it is memorized; above 0, at most 1.", MEASURES)

    checkpoints: Sequence[Path] = setting(
        (),
        "Checkpoints of one training, compared in place of the samplers: pipeline folders; or, on the pipeline of --model, "
        "LoRA files or folders, or folders with transformer/ or unet/. The last number of a name is the training step.",
        MODEL,
        identity=False,
        parse=_paths,
        kind=list[Path],
    )
    limit: float = setting(
        0.05, "Of F_mem: the last checkpoint whose 95 % interval lies below it is named.", MEASURES, identity=False
    )
    card: Path | None = setting(None, "README.md of the model, into which the results are written.", OUTPUT, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.limit < 1:
            raise ValueError(f"limit is {self.limit}; give a share between 0 and 1, such as 0.05.")
        if self.checkpoints and self.num_samples < (needed := fewest_samples(self.limit)):
            raise ValueError(
                f"num_samples is {self.num_samples}, of which none memorized proves no limit of {self.limit:g}; draw at least "
                f"{needed}, or raise --limit."
            )
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; give a ratio above 0 and at most 1 (the paper uses 1/3).")

    def blocks(self) -> list[range]:
        """The numbers of the samples, a batch at a time."""
        at_a_time, count = self.batch_size, self.num_samples
        return [range(start, min(start + at_a_time, count)) for start in range(0, count, at_a_time)]

    @property
    def identity(self) -> dict[str, Any]:
        """As `Settings.identity`, with the shaping in one place."""
        samplers = self.samplers()
        kts, touchdown = samplers["kts"].shaping, samplers["touchdown"].shaping.touchdown
        free = {"preset", *SHAPING}
        shaping = {"shaping": kts.to_dict(), "touchdown": touchdown}
        return {name: value for name, value in super().identity.items() if name not in free} | shaping
