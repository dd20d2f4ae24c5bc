"""The settings of ``kts tune``."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sampling.comparison import ComparisonSettings
from ..sampling.settings import KTS, MEASURES, MODEL, OUTPUT, SAMPLING, PromptSettings, SamplingSettings, inherited, setting

if TYPE_CHECKING:
    import torch

    from ..kpe.trace import KPETrace

    Score = Callable[[torch.Tensor, KPETrace], Any]

MINIMIZE, MAXIMIZE = "minimize", "maximize"
PIECES = 16  # the first eighth of the samples is judged in two halves
LEAST_UNITS = 20  # an interval from fewer numbers would be too narrow


def objective_name(choice: "str | Score") -> str:
    if isinstance(choice, str):
        return choice
    return f"{choice.__module__}:{getattr(choice, '__qualname__', type(choice).__name__)}"


def _named(texts: list[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise ValueError(f"{text!r} names no value; give NAME=VALUE.")
    return {name: value for name, _, value in (text.rpartition("=") for text in texts)}


def _value(text: str) -> Any:
    """A number, None for "none", else the text."""
    try:
        return None if text.lower() == "none" else json.loads(text) if text[:1] != "." else float(text)
    except ValueError:
        return text


def _fixed(texts: list[str]) -> dict[str, Any]:
    return {name: _value(value) for name, value in _named(texts).items()}


def _ranges(texts: list[str]) -> dict[str, list[Any]]:
    named = _named(texts).items()
    return {name: [_value(part) for part in value.split(":" if ":" in value else ",")] for name, value in named}


@dataclass(frozen=True)
class TuneSettings(SamplingSettings, PromptSettings):
    """The settings of `tune`; each field's meaning is its ``help``, which is also the command line's.

    ``objectives`` are names, or functions ``score(images, trace)``; ``fixed`` and ``ranges`` are as in `tune.space.Space`.

    Raises:
        ValueError: a setting is out of range.
    """

    output: Path = setting(Path("kts-tune"), "Folder of the study, which resumes there.", OUTPUT, identity=False)
    objectives: Sequence[Any] = setting(
        ("frechet", "f_mem"),
        "Up to three, the most important first: frechet, f_mem, settling, calls, energy, or a function "
        "score(images, trace) as module:function or file.py:function.",
        KTS,
        identity=False,
        kind=list[str],
        flag="--objective",
    )
    directions: Mapping[str, str] = setting(
        {},
        "OBJECTIVE=minimize or OBJECTIVE=maximize, in place of the usual one.",
        KTS,
        identity=False,
        kind=list[str],
        parse=_named,
        flag="--direction",
    )
    fixed: Mapping[str, Any] = setting(
        {},
        "SETTING=VALUE stays as it is, such as beta_0=0 or touchdown=none.",
        KTS,
        identity=False,
        kind=list[str],
        parse=_fixed,
        flag="--fix",
    )
    ranges: Mapping[str, Sequence[Any]] = setting(
        {},
        "SETTING=LOW:HIGH, such as alpha_0=0:0.05, or late_schedule=linear,exponential.",
        KTS,
        identity=False,
        kind=list[str],
        parse=_ranges,
        flag="--range",
    )
    trials: int = setting(40, "Settings to try, by all processes together.", KTS, identity=False, least=1)
    batch_size: int = inherited(
        SamplingSettings, "batch_size", 32, help=f"Samples drawn at a time, at most a {PIECES}th of --num-samples."
    )
    num_samples: int = setting(256, f"Of each setting that is drawn in full; a multiple of {PIECES}.", SAMPLING)
    device: str = inherited(ComparisonSettings, "device", "auto")
    training_images: Path | None = inherited(ComparisonSettings, "training_images", None)
    reference: Path | None = setting(
        None, "For frechet: held-out real images. Default: the training images.", MODEL, identity=False
    )
    features: str = setting(
        "auto",
        "Space of frechet: inception, efficientnet-lite0, pixels, auto, module:function, TorchScript or .pt2 file.",
        MEASURES,
        identity=False,
    )
    fresh_samples: int = setting(
        512, "Of the candidate and of plain sampling, in the end.", MEASURES, identity=False, least=LEAST_UNITS
    )
    tolerance: float = setting(
        0.0, "Share of plain's first objective that the recommended setting may lose.", MEASURES, identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 2 * PIECES or self.num_samples % PIECES:
            raise ValueError(f"num_samples is {self.num_samples}; give a multiple of {PIECES}, at least {2 * PIECES}.")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance is {self.tolerance}; give a share such as 0.02, or 0.")
        names = [objective_name(choice) for choice in self.objectives]
        if not 1 <= len(names) <= 3 or len(set(names)) < len(names):
            raise ValueError(f"objectives are {', '.join(names) or 'none'}; give one to three different ones.")
        for name, direction in self.directions.items():
            if name not in names:
                raise ValueError(f"a direction is given for {name!r}, which is no objective; these are {', '.join(names)}.")
            if direction not in (MINIMIZE, MAXIMIZE):
                raise ValueError(f"the direction of {name} is {direction!r}; choose {MINIMIZE} or {MAXIMIZE}.")
        if "settling" in names and ({"touchdown"} & {*self.ranges} or self.fixed.get("touchdown") is not None):
            raise ValueError("a path that touches down has no settling; leave the touchdown out, or take f_mem as objective.")
