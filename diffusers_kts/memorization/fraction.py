"""How much of a training set a model gives back: nearest training images, and F_mem, the memorized fraction.

A sample is memorized if it is far closer to one training image than to any other, ``d1 / d2 < 1/3`` with L2 distances in
pixels (arXiv 2602.07928, section on memorization):

    result = measure_memorization(images, training_images)      # both (., C, H, W), on the same scale
    result.f_mem.fraction, result.f_mem.low, result.f_mem.high

Here d2 is the distance to the second nearest *distinct* training image (our rule): where an image occurs twice, its copies
lie at the same distance from every sample, so d1 / d2 = 1 would hide that it was memorized.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.stats import binomtest

from .neighbors import CHUNK_SIZE, check_images, distinct_images, nearest_neighbors

THRESHOLD = 1 / 3
FALSE_ALARMS = 0.05  # share of real images that a calibrated threshold calls copies
APART = 1.8  # ratio of the ranges of samples and training images from which a warning of different scales is raised


def _warn_of_scales(samples: torch.Tensor, training: torch.Tensor) -> None:
    if not samples.numel() or not training.numel():
        return
    (low, high), (from_, to) = ((float(x.min()), float(x.max())) for x in (samples, training))
    if high - low > APART * (to - from_) or to - from_ > APART * (high - low):
        warnings.warn(
            f"samples lie between {low:.3g} and {high:.3g}, training images between {from_:.3g} and {to:.3g}; where scales "
            "differ, no sample is near a training image. Bring both to one scale, such as 0 to 1.",
            UserWarning,
            stacklevel=3,
        )


def memorized(distances: torch.Tensor, threshold: float = THRESHOLD) -> torch.Tensor:
    """(B,) bool, ``d1 / d2 < threshold``; a sample that equals two training images is memorized, one at NaN is not.

    Args:
        distances (`torch.Tensor`, (B, >= 2)): ascending, of `nearest_neighbors`.
        threshold (`float`, defaults to 1/3): the paper's.

    Raises:
        ValueError: fewer than two distances per sample, or a threshold outside (0, 1].
    """
    if distances.ndim != 2 or distances.shape[1] < 2:
        raise ValueError(f"distances are {tuple(distances.shape)}; give (B, 2) or more, from nearest_neighbors(k=2).")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give a ratio above 0 and at most 1 (the paper uses 1/3).")
    d1, d2 = distances[:, 0], distances[:, 1]
    return (d1 < threshold * d2) | (d2 == 0)


def calibrated_threshold(distances: torch.Tensor, false_alarms: float = FALSE_ALARMS) -> float:
    """The d1 / d2 below which at most the share ``false_alarms`` of real images lies.

    Args:
        distances (`torch.Tensor`, (n, 2)): of held-out real images to the training images.
        false_alarms (`float`, defaults to 0.05): of real images that are called copies.
    """
    return float(ratio(distances).sort().values[int(false_alarms * len(distances))])


def ratio(distances: torch.Tensor) -> torch.Tensor:
    """(B,) d1 / d2 of (B, 2); 0 where both are."""
    return torch.where(distances[:, 1] > 0, distances[:, 0] / distances[:, 1], 0.0)


@dataclass(frozen=True)
class MemorizedFraction:
    """F_mem: ``count`` of ``n`` samples are memorized; ``low`` to ``high`` is the exact (Clopper-Pearson) interval."""

    count: int
    n: int
    low: float
    high: float

    @property
    def fraction(self) -> float:
        return self.count / self.n

    @property
    def in_words(self) -> str:
        """The share with its 95 % interval; where no sample or every one is memorized, the bound that this proves."""
        if not self.count:
            return f"at most {100 * self.high:.2g} % (95 %)"
        if self.count == self.n:
            return f"at least {100 * self.low:.3g} % (95 %)"
        return f"{100 * self.fraction:.1f} % (95 %: {100 * self.low:.1f} to {100 * self.high:.1f})"


def memorized_fraction(is_memorized: torch.Tensor, confidence: float = 0.95) -> MemorizedFraction:
    """F_mem with its exact binomial interval, which is right where the count is 0, too.

    Args:
        is_memorized (`torch.Tensor`, (B,)): bool, from `memorized`.
        confidence (`float`, defaults to 0.95): coverage of the interval.

    Raises:
        ValueError: no samples, or a confidence outside (0, 1).
    """
    n = is_memorized.numel()
    _check_interval(n, confidence)
    count = int(is_memorized.sum())
    interval = binomtest(count, n).proportion_ci(confidence, method="exact")
    return MemorizedFraction(count, n, float(interval.low), float(interval.high))


def bootstrap_interval(
    values: torch.Tensor, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (B,); for F_mem give what `memorized` returns.

    Where no sample, or every one, is memorized it has no width: `memorized_fraction` is right there, too.

    Raises:
        ValueError: no values, a confidence outside (0, 1), or no resamples.
    """
    _check_interval(values.numel(), confidence)
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; give at least 1, better 1000.")
    rng, given = np.random.default_rng(seed), values.detach().cpu().double().flatten().numpy()
    means = [given[rng.integers(len(given), size=len(given))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """F_mem of one sampler less that of another from the same noises, its bootstrap interval over the pairs, and the p-value
    of the exact McNemar test, which looks at the noises whose two samples differ."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(
    is_memorized: torch.Tensor, reference: torch.Tensor, confidence: float = 0.95, seed: int = 0
) -> PairedDifference:
    """How F_mem differs between two samplers that drew the same noises.

    Args:
        is_memorized (`torch.Tensor`, (B,)): bool, from `memorized`.
        reference (`torch.Tensor`, (B,)): bool, of the other sampler, the same noise in the same place.
        confidence (`float`, defaults to 0.95): of the bootstrap interval.
        seed (`int`): of the bootstrap.

    Raises:
        ValueError: other shapes, no samples, or a confidence outside (0, 1).
    """
    if is_memorized.shape != reference.shape:
        raise ValueError(
            f"one sampler has {tuple(is_memorized.shape)} samples, the other {tuple(reference.shape)}; give those of the same "
            "noises."
        )
    change = is_memorized.double() - reference.double()
    low, high = bootstrap_interval(change, confidence, seed=seed)
    up, down = int((change > 0).sum()), int((change < 0).sum())
    p_value = float(binomtest(up, up + down).pvalue) if up + down else 1.0
    return PairedDifference(float(change.mean()), low, high, p_value)


def _check_interval(n: int, confidence: float) -> None:
    if not n:
        raise ValueError("there are no samples, so no fraction of them; give at least one.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a number strictly between 0 and 1, such as 0.95.")


@dataclass(frozen=True, eq=False)
class Memorization:
    """What a set of samples repeats of a training set.

    Attributes:
        distances (`torch.Tensor`, (B, 2)): to the nearest and second nearest distinct training image, L2 in ``space``.
        indices (`torch.Tensor`, (B, 2)): which, among all training images; of copies the first.
        space (`str`): where distances were taken, "pixels" or the name of a feature network.
        threshold (`float`): below which d1 / d2 is memorized.
        num_training, num_distinct (`int`): training images, and how many of them differ.
    """

    distances: torch.Tensor
    indices: torch.Tensor
    space: str
    threshold: float
    num_training: int
    num_distinct: int

    @cached_property
    def is_memorized(self) -> torch.Tensor:
        return memorized(self.distances, self.threshold)

    @property
    def f_mem(self) -> MemorizedFraction:
        return memorized_fraction(self.is_memorized)


def measure_memorization(
    samples: torch.Tensor,
    training: torch.Tensor,
    space: str = "pixels",
    threshold: float = THRESHOLD,
    distinct: torch.Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Memorization:
    """Nearest distinct training images and F_mem of samples.

    Args:
        samples (`torch.Tensor`, (B, ...)): images, or their features.
        training (`torch.Tensor`, (n, ...)): likewise, on the same scale.
        space (`str`, defaults to "pixels"): what the numbers are; name the feature network where they are features.
        threshold (`float`, defaults to 1/3): the paper's.
        distinct (`torch.Tensor`, (m,), *optional*): which training images to hold the samples against; by default
            `distinct_images` of ``training``. For features give that of the images themselves: a network may give two
            copies features that differ in the last bit.
        chunk_size (`int`): see `nearest_neighbors`.

    Raises:
        TypeError, ValueError: as `nearest_neighbors` and `memorized`, or fewer than two distinct training images.

    Warns of pixels on different scales, which would never be near.
    """
    check_images(samples, training)
    if space == "pixels":
        _warn_of_scales(samples, training)
    if distinct is None:
        distinct = distinct_images(training)
    if len(distinct) < 2:
        raise ValueError(f"of {len(training)} training images {len(distinct)} are distinct; d1 / d2 needs at least two.")
    distances, indices = nearest_neighbors(samples, training[distinct.to(training.device)], chunk_size=chunk_size)
    memorized(distances[:0], threshold)  # refuses a wrong threshold
    return Memorization(distances, distinct.to(indices.device)[indices], space, threshold, len(training), len(distinct))
