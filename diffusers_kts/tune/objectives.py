"""What a study makes better: each objective reads batches of samples, and compares two settings on the same noises.

=========  ==========================================================================================================
frechet    Frechet distance to reference images, in a named feature space
f_mem      share of samples that repeat a training image, ``d1/d2 < 1/3`` in pixels
settling   mean of `KPETrace.settling`, the memorization score that needs no training images; it ranks samples of one
           sampler, so what it says of two samplers should be confirmed with f_mem
calls      network evaluations per sample
energy     mean path energy per dimension
=========  ==========================================================================================================

All of them are to be small unless a direction is given. A function of the user's, ``score(images, trace)``, is to be large.
"""

import hashlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from ..errors import brief
from ..features.feature_space import FeatureSpace
from ..features.frechet import FeatureStatistics, frechet_distance
from ..kpe.trace import KPETrace
from ..memorization.fraction import bootstrap_interval, measure_memorization, paired_difference
from ..memorization.neighbors import distinct_images
from ..user_functions import load_function
from .settings import MAXIMIZE, MINIMIZE, objective_name

NAMED = ("frechet", "f_mem", "settling", "calls", "energy")
RESAMPLES = 100  # of a Frechet distance, whose interval needs their standard deviation only
Score = Callable[[torch.Tensor, KPETrace], Any]


@dataclass(frozen=True)
class Samples:
    """Images (B, C, H, W), of videos (B, F, C, H, W), in [0, 1], and the energy record of the samples."""

    images: torch.Tensor
    trace: KPETrace


@dataclass(frozen=True)
class Difference:
    """By how much an objective of one setting exceeds that of another, on the same noises, with an interval. ``significant``
    is the decision at the interval's level, which is not always read off the interval."""

    difference: float
    low: float
    high: float
    significant: bool


@dataclass(frozen=True)
class Objective:
    """The mean of what ``of`` gives for a batch: (units,), where a unit is a sample, or the whole batch."""

    name: str
    direction: str
    of: Callable[[Samples], torch.Tensor]
    label: str = ""

    def read(self, samples: Samples) -> torch.Tensor:
        """(units, ...) readings of a batch; those of several batches are joined before `value`."""
        return self.of(samples)

    def value(self, readings: torch.Tensor) -> float:
        return float(readings.double().mean())

    def difference(self, readings: torch.Tensor, plain: torch.Tensor, level: float, seed: int) -> Difference:
        """``readings`` less ``plain``, the same noise in the same place; bootstrap over the pairs."""
        change = readings.double() - plain.double()
        low, high = bootstrap_interval(change, 1 - level, seed=seed)
        return Difference(float(change.mean()), low, high, low > 0 or high < 0)

    @property
    def sign(self) -> int:
        """1 where small values are good, -1 where large ones are."""
        return 1 if self.direction == MINIMIZE else -1


class MemorizedShare(Objective):
    """F_mem; what is significant is decided by the exact McNemar test, since few samples may differ."""

    def difference(self, readings: torch.Tensor, plain: torch.Tensor, level: float, seed: int) -> Difference:
        found = paired_difference(readings, plain, 1 - level, seed)
        return Difference(found.difference, found.low, found.high, found.p_value < level)


@dataclass(frozen=True)
class Frechet(Objective):
    """Frechet distance of the features that ``of`` gives, (B, d), to those of reference images."""

    reference: FeatureStatistics | None = None

    def value(self, readings: torch.Tensor) -> float:
        assert self.reference is not None
        return frechet_distance(readings, self.reference)

    def difference(self, readings: torch.Tensor, plain: torch.Tensor, level: float, seed: int) -> Difference:
        """The interval is centred on the difference itself: a resample repeats samples, which raises both distances."""
        rng, n, found = np.random.default_rng(seed), len(readings), []
        for _ in range(RESAMPLES):
            rows = torch.from_numpy(rng.integers(n, size=n))
            found.append(self.value(readings[rows]) - self.value(plain[rows]))
        difference, reach = self.value(readings) - self.value(plain), float(norm.isf(level / 2) * np.std(found, ddof=1))
        return Difference(difference, difference - reach, difference + reach, abs(difference) > reach)


@dataclass(frozen=True)
class Yardsticks:
    """Images that samples are held against, (n, C, H, W) in [0, 1]; either may be missing where no objective needs it."""

    space: FeatureSpace | None = None
    reference: torch.Tensor | None = None
    training: torch.Tensor | None = None


def find_objective(choice: str | Score, direction: str | None, yardsticks: Yardsticks) -> Objective:
    """The objective of that name, or of the user's function.

    Args:
        choice (`str` or `Callable`): one of `NAMED`; "module:function" or "file.py:function"; or the function itself,
            ``score(images, trace)``, which returns a float for the batch, or (B,), one number per sample.
        yardsticks: what named objectives compare with.
        direction (`str`, *optional*): "minimize" or "maximize", in place of the usual one.

    Raises:
        ValueError: there is none of that name, and why.
    """
    if callable(choice) or choice not in NAMED:
        function = choice if callable(choice) else load_score(choice)
        name = objective_name(choice)
        return Objective(name, direction or MAXIMIZE, lambda samples: _scored(name, function, samples), name)
    direction = direction or MINIMIZE
    if choice == "frechet":
        space, reference = yardsticks.space, yardsticks.reference
        assert space is not None and reference is not None
        label = f"Frechet distance, {space.name}"
        return Frechet(choice, direction, lambda s: space(s.images), label, FeatureStatistics.of(space(reference)))
    if choice == "f_mem":
        training = yardsticks.training
        assert training is not None
        distinct = distinct_images(training)
        of = lambda s: measure_memorization(s.images, training, distinct=distinct).is_memorized  # noqa: E731
        return MemorizedShare(choice, direction, of, "F_mem")
    readers: dict[str, tuple[Callable[[Samples], torch.Tensor], str]] = {
        "settling": (lambda s: s.trace.settling, "settling"),
        "calls": (lambda s: torch.full((len(s.trace),), float(s.trace.num_steps)), "network calls"),
        "energy": (lambda s: s.trace.per_dim, "path energy per dim"),
    }
    of, label = readers[choice]
    return Objective(choice, direction, of, label)


def load_score(choice: str) -> Score:
    """The user's function ``score(images, trace)``.

    Raises:
        ValueError: there is none of that name, and why.
    """
    if ":" not in choice:
        raise ValueError(
            f"there is no objective {choice!r}; choose from {', '.join(NAMED)}, or give module:function or file.py:function."
        )
    return load_function(choice, "objective")


def source_digest(choice: str | Score) -> str | None:
    """SHA-256 of the file that the user's function is in, so that a study does not resume with another function."""
    if isinstance(choice, str) and choice in NAMED:
        return None
    function: Any = load_score(choice) if isinstance(choice, str) else choice
    try:
        path = inspect.getsourcefile(function)
    except TypeError:  # built in, or an object that can be called
        path = None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else None


def _scored(name: str, function: Score, samples: Samples) -> torch.Tensor:
    try:
        scores = torch.as_tensor(function(samples.images, samples.trace)).detach().cpu()
    except Exception as error:  # of the user's function
        raise ValueError(f"the objective {name!r} fails on {tuple(samples.images.shape)} images ({brief(error)}).") from error
    if scores.numel() not in (1, len(samples.images)) or scores.is_complex():
        raise ValueError(
            f"the objective {name!r} gave {tuple(scores.shape)} for {len(samples.images)} images; give a float or (B,)."
        )
    return scores.double().flatten()


def is_finite(values: list[float]) -> bool:
    return all(math.isfinite(value) for value in values)
