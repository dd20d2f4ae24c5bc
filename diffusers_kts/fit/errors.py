"""How far samples end from the teacher, and which sampler is recommended for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..memorization.fraction import bootstrap_interval

FITTED, GRID = "fitted", "Adams-Bashforth, same grid"
LEAST = 1e-9  # an error of zero has no logarithm


def distances(ends: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(n,) RMS distance of each sample (n, ...) to the teacher's; infinite where a sample is not finite."""
    return (ends.double() - teacher.double()).flatten(1).square().mean(1).sqrt().nan_to_num(nan=torch.inf)


def typical(errors: torch.Tensor) -> float:
    """Geometric mean, which a trajectory that has gone to another image does not dominate."""
    return float(errors.clamp(min=LEAST).log().mean().exp())


@dataclass(frozen=True)
class Error:
    """Errors of a sampler over trajectories: the mean with its 95 % bootstrap interval, the typical one (geometric mean), and
    the ratio of the fitted sampler's typical error to it, with its interval over the pairs (None for itself)."""

    mean: float
    low: float
    high: float
    typical: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None

    @classmethod
    def of(cls, errors: torch.Tensor, fitted: torch.Tensor | None = None) -> "Error":
        """Of the distances (n,) of a sampler; ``fitted`` are those of the fitted one, from the same noises."""
        found = cls(float(errors.mean()), *bootstrap_interval(errors), typical(errors))
        if fitted is None:
            return found
        gain = fitted.clamp(min=LEAST).log() - errors.clamp(min=LEAST).log()
        ratio = [math.exp(value) for value in (float(gain.mean()), *bootstrap_interval(gain))]
        return cls(found.mean, found.low, found.high, found.typical, *ratio)


def compared(errors: Mapping[str, torch.Tensor]) -> dict[str, Error]:
    """Every sampler by its name; one of them is `FITTED`. A sampler with a sample that is not finite is left out."""
    finite = {name: own for name, own in errors.items() if bool(own.isfinite().all())}
    return {name: Error.of(own, None if name == FITTED else finite.get(FITTED)) for name, own in finite.items()}


def recommended(found: Mapping[str, Error]) -> str:
    """The sampler with the lowest typical error; plain weights on the fitted grid are no sampler of their own."""
    return min((name for name in found if name != GRID), key=lambda name: found[name].typical)


def verdict(steps: int, found: Mapping[str, Error]) -> str:
    """A sentence for the reader."""
    if FITTED not in found:
        return f"{steps} steps: the fitted sampler diverged. Do not use it; fit more steps."
    own = found[FITTED]
    best = min((name for name in found if name not in (FITTED, GRID)), key=lambda name: found[name].typical, default=None)
    error = f"{steps} steps: error {own.mean:.3g} ({own.low:.3g} to {own.high:.3g})"
    if best is None:
        return f"{error}; nothing else could be compared."
    ratio, low, high = (getattr(found[best], name) for name in ("ratio", "ratio_low", "ratio_high"))
    against = f"typically {ratio:.2f} times that of {best} (95 %: {low:.2f} to {high:.2f}), the best of the others"
    if ratio <= 1 and high < 1:
        return f"{error}, {against}. Use the fitted sampler."
    if ratio <= 1:
        return f"{error}, {against}: no significant difference. The fitted sampler does no harm."
    if low <= 1:
        return f"{error}, {against}: no significant difference. Use {best}, which needs no fit."
    return f"{error}, {against}, which is better. Use {best}."
