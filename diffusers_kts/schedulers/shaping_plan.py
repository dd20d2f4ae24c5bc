"""ShapingPlan: what is planned for every network evaluation of a schedule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..flow_coordinates import flow_times
from ..gain import is_number
from ..shaping import Shaping

CustomGain = Callable[[float], float] | Sequence[float] | None


@dataclass(frozen=True)
class ShapingPlan:
    """Levels, times and gains of a schedule, on the host.

    Attributes:
        levels: N + 1 noise levels in flow coordinates, ``1 - t`` (``t`` under ``invert_sigmas``).
        times: N + 1 flow times.
        gains: N gains ``eta``.
        touchdown: the first evaluation that goes to the data estimate in one whole step; None if none does.
        stride: evaluations per step; those between the first of two steps correct the step before them (Heun).
        is_off: whether nothing is shaped.
    """

    levels: list[float]
    times: list[float]
    gains: list[float]
    touchdown: int | None = None
    stride: int = 1
    is_off: bool = False

    @classmethod
    def of(
        cls,
        levels: list[float],
        shaping: Shaping,
        gain: CustomGain = None,
        invert_sigmas: bool = False,
        marks: Sequence[float] = (),
        stride: int = 1,
    ) -> "ShapingPlan":
        """Plan a schedule.

        Args:
            levels: N + 1 noise levels in flow coordinates.
            shaping: the settings.
            gain: replaces the gain of ``shaping``: a function of the flow time, or one number per step.
            invert_sigmas: whether levels are flow times.
            marks: flow times that levels within 1e-6 are set to, in addition to those of ``shaping``.
            stride: evaluations per step.

        Raises:
            ValueError: ``gain`` does not fit the schedule, or is negative or not finite somewhere.
        """
        t = flow_times(levels, invert_sigmas, (*shaping.marks, *marks))
        times = t.tolist()
        gains = shaping(t[:-1]).tolist() if gain is None else _own(gain, times[:-1], stride, shaping.touchdown)
        landed = []
        if shaping.touchdown is not None:
            landed = [i for i in range(0, len(gains), stride) if times[i] >= shaping.touchdown]
        for i in landed:
            gains[i] = 1.0
        if landed and landed[-1] == len(gains) - 1:  # it goes to the data, also where a pipeline holds the last noise level
            levels = [*levels[:-1], float(invert_sigmas)]
        return cls(levels, times, gains, landed[0] if landed else None, stride, gain is None and shaping.is_off)

    def interval(self, index: int) -> float:
        """``sigma_{i+1} - sigma_i`` of evaluation ``index``."""
        return self.levels[index + 1] - self.levels[index]

    def touches_down(self, index: int) -> bool:
        """Whether this evaluation goes to the data estimate."""
        return self.touchdown is not None and index >= self.touchdown and index % self.stride == 0


def check_gain(gain: Any) -> CustomGain:
    """A gain as the configuration keeps it: a function, a list of numbers, or None.

    Raises:
        ValueError: it is something else, or a number is negative or not finite.
    """
    if gain is None or callable(gain):
        return gain
    if hasattr(gain, "tolist"):
        gain = gain.tolist()
    if not isinstance(gain, (list, tuple)):
        raise ValueError(f"gain is {gain!r}; give one number per step, a function of the flow time, or None.")
    for i, eta in enumerate(gain):
        _check_eta(eta, f"at step {i}")
    return list(gain)


def _check_eta(eta: Any, where: str) -> None:
    if not is_number(eta) or eta < 0:
        raise ValueError(f"gain is {eta!r} {where}; give finite numbers of at least 0 (1 is an unshaped step).")


def _own(gain: Any, times: list[float], stride: int, touchdown: float | None) -> list[float]:
    if callable(gain):
        gains = [float(gain(t)) for t in times]
        for t, eta in zip(times, gains, strict=True):
            _check_eta(eta, f"at t = {t:.4g}")
        return gains
    steps = 1 + (len(times) + stride - 2) // stride
    if len(gain) < steps or (len(gain) > steps and touchdown is None):
        raise ValueError(
            f"gain has {len(gain)} numbers, the schedule {steps} steps; give one number per step, or a function of the flow "
            "time."
        )
    return [float(gain[(i + stride - 1) // stride]) for i in range(len(times))]
