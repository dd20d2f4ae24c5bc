"""The settings of ``kts fit``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..sampling.comparison import ComparisonSettings
from ..sampling.settings import OUTPUT, SAMPLING, PromptSettings, SamplingSettings, inherited, setting

ALL = "all"


def _counts(given: str | list[Any]) -> list[int]:
    """Whole numbers of a list or of text with commas."""
    parts = given.split(",") if isinstance(given, str) else [part for text in given for part in str(text).split(",")]
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise ValueError(f"num_inference_steps is {given!r}; give whole numbers, such as 8 or 6,8,12.") from None


@dataclass(frozen=True)
class FitSettings(SamplingSettings, PromptSettings):
    """The settings of `run_fit`; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is out of range.
    """

    num_inference_steps: Sequence[int] = setting(  # type: ignore[assignment]
        (8,), "Network calls of a sample to fit for, or several: 6,8,12. At least 2.", SAMPLING, identity=False, kind=str,
        parse=_counts,
    )  # fmt: skip
    num_trajectories: int = setting(16, "Trajectories to fit to.", SAMPLING, least=2)
    num_held_out: int = setting(
        32, "Further ones: half of them choose, half of them check. An even number.", SAMPLING, least=4
    )
    teacher_steps: int = setting(200, "Network calls of a trajectory to fit to.", SAMPLING, least=20)
    history: str = setting("4", "Velocities per step at most; 1 fits gains, all takes all so far.", SAMPLING, identity=False)
    device: str = inherited(ComparisonSettings, "device", "auto")
    output: Path = setting(Path("kts-fit"), "For scheduler and report; a stopped fit resumes there.", OUTPUT, identity=False)
    overwrite: bool = inherited(ComparisonSettings, "overwrite", False, help="Delete an earlier fit first.")
    dry_run: bool = setting(False, "Say calls, time and memory; write nothing.", OUTPUT, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = list(self.num_inference_steps)
        bad = [n for n in counts if not isinstance(n, int) or isinstance(n, bool) or n < 2]
        if bad or not counts or len(set(counts)) < len(counts):
            raise ValueError(f"num_inference_steps is {counts}; give different whole numbers of at least 2.")
        if max(counts) >= self.teacher_steps:
            raise ValueError(
                f"num_inference_steps is {max(counts)}, teacher_steps {self.teacher_steps}; the teacher needs more, better "
                "ten times as many."
            )
        if self.num_held_out % 2:
            raise ValueError(f"num_held_out is {self.num_held_out}; give an even number.")
        if self.history != ALL and not (self.history.isdecimal() and int(self.history) >= 1):
            raise ValueError(f"history is {self.history!r}; give a number of at least 1, or all.")

    @property
    def velocities(self) -> int | None:
        """Velocities per step at most; None for all."""
        return None if self.history == ALL else int(self.history)

    @property
    def sampling(self) -> SamplingSettings:
        """What the pipeline is called with, apart from the number of steps."""
        names = [f.name for f in dataclasses.fields(SamplingSettings) if f.name != "num_inference_steps"]
        return SamplingSettings(**{name: getattr(self, name) for name in names})
