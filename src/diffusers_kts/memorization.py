"""How much of a training set a model gives back: nearest training images, and F_mem, the memorised fraction.

A sample is memorised if it is far closer to one training image than to any other, ``d1 / d2 < 1/3`` with L2 distances in
pixels (arXiv 2602.07928, section on memorisation).
"""

from dataclasses import dataclass

import torch
from scipy.stats import binomtest

THRESHOLD = 1 / 3


def nearest_neighbours(
    samples: torch.Tensor, training: torch.Tensor, k: int = 2, chunk_size: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` training images nearest to every sample, exactly.

    Args:
        samples (`torch.Tensor`, (B, ...)): floating-point images; computed in their dtype, on their device.
        training (`torch.Tensor`, (n, ...)): images of the same shape and the same scale.
        k (`int`, defaults to 2): how many neighbours.
        chunk_size (`int`, defaults to 1024): training images held against the samples at a time; the result, to the last
            bit, does not depend on it.

    Returns:
        distances (B, k), L2 in the units of the pixels, ascending, and indices (B, k) into ``training``; of equal
        distances the lower index comes first. A sample that is not finite is at distance NaN.

    Raises:
        TypeError: not floating point. ValueError: shapes that do not match, too few training images, ``chunk_size`` < 1.
    """
    for name, images in (("samples", samples), ("training", training)):
        if not images.is_floating_point():
            raise TypeError(f"{name} is {images.dtype}; give floating-point images, both on the same scale (uint8 / 255).")
    if samples.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"samples are {tuple(samples.shape[1:])}, training images {tuple(training.shape[1:])}; give the same shape."
        )
    if not 1 <= k <= len(training):
        raise ValueError(f"k is {k} for {len(training)} training images; give a k from 1 to that number.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; give at least 1.")
    x = samples.flatten(1)
    distances, indices = x.new_empty((len(x), 0)), torch.empty((len(x), 0), dtype=torch.int64, device=x.device)
    for start in range(0, len(training), chunk_size):
        chunk = training[start : start + chunk_size].flatten(1).to(x)
        # the matrix-product form is faster, but turns a distance of zero into one of about 1e-3
        d = torch.cdist(x, chunk, compute_mode="donot_use_mm_for_euclid_dist")
        i = torch.arange(start, start + len(chunk), device=x.device).expand_as(d)
        distances, order = torch.cat([distances, d], 1).sort(dim=1, stable=True)
        distances, indices = distances[:, :k], torch.cat([indices, i], 1).gather(1, order[:, :k])
    return distances, indices


def memorized(distances: torch.Tensor, threshold: float = THRESHOLD) -> torch.Tensor:
    """(B,) bool, ``d1 / d2 < threshold``; a sample that equals two training images is memorised, one at NaN is not.

    Args:
        distances (`torch.Tensor`, (B, >= 2)): ascending, of `nearest_neighbours`.
        threshold (`float`, defaults to 1/3): the paper's.

    Raises:
        ValueError: fewer than two distances per sample, or a threshold outside (0, 1].
    """
    if distances.ndim != 2 or distances.shape[1] < 2:
        raise ValueError(f"distances are {tuple(distances.shape)}; give (B, 2) or more, from nearest_neighbours(k=2).")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give a ratio above 0 and at most 1 (the paper uses 1/3).")
    d1, d2 = distances[:, 0], distances[:, 1]
    return (d1 < threshold * d2) | (d2 == 0)


@dataclass(frozen=True)
class MemorizedFraction:
    """F_mem: ``count`` of ``n`` samples are memorised; ``low`` to ``high`` is the exact (Clopper-Pearson) interval."""

    count: int
    n: int
    low: float
    high: float

    @property
    def fraction(self) -> float:
        return self.count / self.n


def memorized_fraction(is_memorized: torch.Tensor, confidence: float = 0.95) -> MemorizedFraction:
    """F_mem with its exact binomial interval, which is right where the count is 0, too.

    Args:
        is_memorized (`torch.Tensor`, (B,)): bool, from `memorized`.
        confidence (`float`, defaults to 0.95): coverage of the interval.

    Raises:
        ValueError: no samples, or a confidence outside (0, 1).
    """
    n = is_memorized.numel()
    if not n:
        raise ValueError("there are no samples, so no fraction of them; give at least one.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a number strictly between 0 and 1, such as 0.95.")
    count = int(is_memorized.sum())
    interval = binomtest(count, n).proportion_ci(confidence, method="exact")
    return MemorizedFraction(count, n, float(interval.low), float(interval.high))
