"""Which settings a study may propose: every shaping setting and the number of steps, each free, restricted or fixed."""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..gain import SCHEDULES, Gain, is_number
from ..presets import PRESETS
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler

OFF = PRESETS["off"]
NUMBERS: dict[str, tuple[float, float]] = {
    "alpha_0": (0.0, 0.1),
    "beta_0": (0.0, math.inf),  # up to where the gain reaches 0
    "tau_split": (0.2, 0.9),
    "k": (1.0, 6.0),
    "touchdown": (0.4, 0.95),
}
STRENGTHS = {"alpha_0": "early_schedule", "beta_0": "late_schedule"}
SHAPES = (*STRENGTHS.values(),)
PARTS = (*STRENGTHS, "touchdown")  # launch, landing and touchdown may each be there or not
STEPS = "num_inference_steps"
NAMES = (*NUMBERS, *SHAPES, STEPS)
ROOT = "root_of_beta_0"  # what the search moves in place of beta_0


@dataclass(frozen=True)
class Setting:
    """One way to sample: shaping settings of a KTS scheduler, all named, and the number of steps."""

    shaping: dict[str, Any]
    num_inference_steps: int

    def __str__(self) -> str:
        s, words, names = self.shaping, [], active(self.shaping)
        for strength, shape in STRENGTHS.items():
            if shape in names:
                words.append(f"{strength} {s[strength]:g} ({s[shape]})")
        words += [f"{name} {s[name]:g}" for name in ("tau_split", "k") if name in names]
        if s["touchdown"] is not None:
            words.append(f"touchdown {s['touchdown']:g}")
        return f"{', '.join(words) or 'plain'}, {self.num_inference_steps} steps"


def active(shaping: Mapping[str, Any]) -> set[str]:
    """The settings that do something next to the others: without a launch, for instance, its shape does nothing."""
    shapes = {shape for strength, shape in STRENGTHS.items() if shaping[strength]}
    exponential = any(shaping[shape] == "exponential" for shape in shapes)
    return {*PARTS} | shapes | ({"tau_split"} if shapes else set()) | ({"k"} if exponential else set())


@dataclass(frozen=True)
class Space:
    """The settings a study may propose, none of which the scheduler refuses.

    Launch, landing and touchdown, where they are not fixed, may each be left out, and what then does nothing is not searched.
    ``beta_0`` is searched as the root of its share of its range, since gentle landings matter most; the upper end of that
    range is never above `Gain.largest_beta_0` of the shape and ``k`` proposed with it.

    Args:
        num_inference_steps (`int`): of plain sampling, and of every setting unless a range is given for it.
        fixed (`Mapping[str, Any]`): settings that stay as they are.
        ranges (`Mapping[str, Sequence]`): lowest and highest value of a number; for a shape the names to choose from.

    Raises:
        ValueError: a name that does not exist or is given twice, a range that is none, or settings that the scheduler refuses.
    """

    num_inference_steps: int
    fixed: Mapping[str, Any]
    ranges: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        for name in (*self.fixed, *self.ranges):
            if name not in NAMES:
                close = difflib.get_close_matches(name, NAMES, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it is one of {', '.join(NAMES)}."
                raise ValueError(f"there is no setting {name!r} to tune; {hint}")
            if name in self.fixed and name in self.ranges:
                raise ValueError(f"{name} is fixed and has a range; give one of them.")
        for name, given in self.ranges.items():
            if name in SHAPES:
                if wrong := [shape for shape in given if shape not in SCHEDULES]:
                    raise ValueError(f"the range of {name} has {wrong[0]!r}; choose from {', '.join(SCHEDULES)}.")
                if not given:
                    raise ValueError(f"the range of {name} is empty; choose from {', '.join(SCHEDULES)}.")
            elif len(given) != 2 or not all(is_number(x) for x in given) or not given[0] <= given[1]:
                raise ValueError(f"the range of {name} is {given!r}; give its lowest and highest value, such as 0:0.05.")
        steps = self._bounds(STEPS)
        if any(not is_number(x) or x != int(x) or x < 1 for x in steps):
            raise ValueError(f"num_inference_steps is {steps[0]!r} to {steps[1]!r}; give whole numbers of at least 1.")
        self._try_corners()

    def _try_corners(self) -> None:
        """What cannot be is refused by gain and scheduler themselves; their limits are monotone, so the ends of all ranges
        decide."""
        ends: dict[str, Sequence[Any]] = {name: self._bounds(name) for name in ("alpha_0", "tau_split", "k")}
        ends |= {"beta_0": self._bounds("beta_0")[:1]} | {name: self._shapes(name) for name in SHAPES}
        try:
            for values in itertools.product(*ends.values()):
                Gain(**dict(zip(ends, values, strict=True)))
            for touchdown in self._bounds("touchdown") if self._may_touch_down else ():
                KTSFlowMatchScheduler(touchdown=touchdown)
        except (ValueError, TypeError) as error:
            raise ValueError(f"the space holds settings that cannot be used: {error}") from error

    @property
    def _may_touch_down(self) -> bool:
        return self.fixed.get("touchdown", 0.0) is not None

    def _bounds(self, name: str) -> tuple[Any, ...]:
        if name in self.fixed:
            return self.fixed[name], self.fixed[name]
        low, high = self.ranges.get(name, NUMBERS.get(name, (self.num_inference_steps,) * 2))
        return low, high

    def _shapes(self, name: str) -> tuple[str, ...]:
        return (self.fixed[name],) if name in self.fixed else tuple(self.ranges.get(name, SCHEDULES))

    @property
    def plain(self) -> Setting:
        return Setting(dict(OFF), self.num_inference_steps)

    def propose(self, trial: Any) -> Setting:
        """The setting of an `optuna.Trial`; numbers have four significant digits."""

        def number(name: str) -> float:
            low, high = self._bounds(name)
            return low if low == high else _short(trial.suggest_float(name, low, high), low, high)

        shaping = OFF | {name: value for name, value in self.fixed.items() if name != STEPS}
        parts = [name for name in PARTS if self._has(trial, name)]
        shaping |= dict.fromkeys(parts, 1.0)  # a place holder: what is there decides what else to ask for
        for name in SHAPES:
            if name in active(shaping) and len(choices := self._shapes(name)) > 1:
                shaping[name] = trial.suggest_categorical(name, choices)
            elif name not in self.fixed and name in active(shaping):
                shaping[name] = choices[0]
        shaping |= {name: number(name) for name in NUMBERS if name in active(shaping) - {*PARTS}}
        shaping |= {name: number(name) for name in parts if name != "beta_0"}
        if "beta_0" in parts:
            low, high = self._landing(shaping)
            shaping["beta_0"] = low
            if low < high:
                shaping["beta_0"] = _short(low + trial.suggest_float(ROOT, 0.0, 1.0) ** 2 * (high - low), low, high)
        low, high = self._bounds(STEPS)
        return Setting(shaping, int(low if low == high else trial.suggest_int(STEPS, low, high, log=True)))

    def _has(self, trial: Any, name: str) -> bool:
        """Whether there is a launch (by its strength), a landing, a touchdown."""
        if name in self.fixed:
            return self.fixed[name] != OFF[name]
        low, high = self._bounds(name)
        if name in STRENGTHS and (low == high or not low <= 0 <= high):
            return low != 0
        return trial.suggest_categorical(f"has {name}", [False, True])

    def _landing(self, shaping: Mapping[str, Any]) -> tuple[float, float]:
        """Lowest and highest ``beta_0`` with the other settings."""
        low, high = self._bounds("beta_0")
        gain = Gain(**{name: shaping[name] for name in ("alpha_0", "tau_split", "k", *SHAPES)}, beta_0=0.0)
        return low, min(high, gain.largest_beta_0)

    def starts(self) -> list[dict[str, Any]]:
        """What makes `propose` give each of `PRESETS` that lies in the space: where a study begins."""
        return [self._told(preset) for preset in PRESETS.values() if preset != OFF and preset in self]

    def _told(self, shaping: Mapping[str, Any]) -> dict[str, Any]:
        low, high = self._landing(shaping)
        told = {name: shaping[name] for name in active(shaping) - {"beta_0"} if shaping[name] is not None}
        told |= {f"has {name}": shaping[name] != OFF[name] for name in PARTS} | {STEPS: self.num_inference_steps}
        return told | {ROOT: math.sqrt((shaping["beta_0"] - low) / (high - low)) if low < high else 0.0}

    def __contains__(self, shaping: Mapping[str, Any]) -> bool:
        for name in active(shaping):
            value = shaping[name]
            if name in self.fixed:
                allowed = value == self.fixed[name]
            elif name in SHAPES:
                allowed = value in self._shapes(name)
            else:
                low, high = self._bounds(name)
                allowed = value is None or low <= value <= high
            if not allowed:
                return False
        low, high = self._bounds(STEPS)
        return low <= self.num_inference_steps <= high


def _short(value: float, low: float, high: float) -> float:
    """Four significant digits, within the range."""
    return min(max(float(f"{value:.4g}"), low), high)
