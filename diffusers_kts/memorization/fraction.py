"""How much of a training set a model gives back: nearest training images, and F_mem, the memorized fraction.

A sample is memorized if it is far closer to one training image than to any other, ``d1 / d2 < 1/3`` with L2 distances in
pixels (arXiv 2602.07928, section on memorization):

    result = measure_memorization(images, training_images)      # both (., C, H, W), on the same scale
    result.f_mem.fraction, result.f_mem.low, result.f_mem.high

Here d2 is the distance to the second nearest *distinct* training image (our rule): where an image occurs twice, its copies
lie at the same distance from every sample, so d1 / d2 = 1 would hide that it was memorized.
"""

import hashlib
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.stats import binomtest

THRESHOLD = 1 / 3
APART = 1.8  # ratio of the ranges of samples and training images from which they are told to be on different scales
CHUNK_SIZE = 4096
_SPARE = 16  # candidates beyond k, so that the bound separates nearly every sample
_BLOCK = 1024  # samples held against a chunk at a time
_COLUMNS = 2048  # dimensions summed in one matrix product, which keeps its rounding bound small for large images
_NUMBERS = 2**25  # read at a time, whatever the size of an image; 256 MiB in float64


@torch.no_grad()
def nearest_neighbors(
    samples: torch.Tensor, training: torch.Tensor, k: int = 2, chunk_size: int = CHUNK_SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` training images nearest to every sample, exactly: what a search through all float64 distances finds.

    A matrix product shortlists candidates, whose distances are then computed by differences, in float64. Where the rounding
    bound of the product cannot exclude all others, the sample is held against every training image in that way.

    Args:
        samples (`torch.Tensor`, (B, ...)): floating-point images, or features of them; computed on their device.
        training (`torch.Tensor`, (n, ...)): of the same shape and the same scale; read in the dtype of the samples.
        k (`int`, defaults to 2): how many neighbors.
        chunk_size (`int`, defaults to 4096): training images held against the samples at a time, fewer if they are large;
            the result, to the last bit, does not depend on it.

    Returns:
        distances (B, k), L2 in the units of the samples and in their dtype (float32 for narrower ones), ascending, and
        indices (B, k) into ``training``; of equal distances the lower index comes first. A sample with a NaN is at
        distance NaN.

    Raises:
        TypeError: not floating point. ValueError: shapes that do not match, too few training images, ``chunk_size`` < 1.
    """
    _check_images(samples, training)
    if not 1 <= k <= len(training):
        raise ValueError(f"k is {k} for {len(training)} training images; give a k from 1 to that number.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; give at least 1.")
    x, y = samples.flatten(1).to(torch.promote_types(samples.dtype, torch.float32)), training.flatten(1)
    chunk_size = min(chunk_size, max(1, _NUMBERS // max(1, x.shape[1])))
    with torch.autocast(x.device.type, enabled=False):
        candidates, separated = _shortlist(x, y, k, chunk_size)
        distances, indices = _nearest_of(x, y, candidates, k)
        rest = (~separated).nonzero().flatten()
        if len(rest):
            distances[rest], indices[rest] = _search_all(x[rest], y, k, chunk_size)
    return distances, indices


def _check_images(samples: torch.Tensor, training: torch.Tensor) -> None:
    for name, images in (("samples", samples), ("training", training)):
        if not isinstance(images, torch.Tensor):
            raise TypeError(f"{name} is {type(images).__name__}; give a tensor of floats, torch.from_numpy(...).float().")
        if not images.is_floating_point():
            raise TypeError(f"{name} is {images.dtype}; give floating-point images, both on the same scale (uint8 / 255).")
    if samples.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"samples are {tuple(samples.shape[1:])}, training images {tuple(training.shape[1:])}; give the same shape."
        )


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


def _shortlist(x: torch.Tensor, y: torch.Tensor, k: int, chunk_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates (B, m), and (B,) bool, whether these surely hold the k nearest.

    Ranked by ``g = ||y||^2 - 2 x.y``, the squared distance less ``||x||^2``. Summing n terms at unit roundoff u, the
    computed g is within ``E = n u (||x|| + ||y||)^2`` of the true one, in whatever order a library sums. The squared
    distances that decide have a relative error r (d roundoffs of float64, and rounding to the dtype of x). Let T be the k-th
    smallest computed g: then none of the k nearest has one above ``T + 2 E + 2 r (||x|| + ||y||)^2``.
    """
    m, d = min(k + _SPARE, len(y)), x.shape[1]
    # TF32 and the like round the factors, too, of which the bound knows nothing
    dtype = x.dtype if torch.get_float32_matmul_precision() == "highest" else torch.float64
    best = torch.empty((len(x), 0), dtype=dtype, device=x.device)
    indices, longest = torch.empty_like(best, dtype=torch.int64), torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, len(y), chunk_size):
        chunk = y[start : start + chunk_size].to(x).to(dtype)
        norms = _norms(chunk)
        longest = torch.maximum(longest, norms.max())
        parts = [_scores(block.to(dtype), chunk, norms).topk(min(m, len(chunk)), largest=False) for block in x.split(_BLOCK)]
        best = torch.cat([best, torch.cat([part.values for part in parts])], 1)
        indices = torch.cat([indices, torch.cat([part.indices for part in parts]) + start], 1)
        best, order = best.topk(min(m, best.shape[1]), largest=False)
        indices = indices.gather(1, order)
    unit, unit64 = torch.finfo(dtype).eps / 2, torch.finfo(torch.float64).eps / 2
    reach = (_norms(x) + longest).square()
    terms = min(d, _COLUMNS) + d // _COLUMNS + 16
    slack = 2.5 * (terms * unit + 2 * torch.finfo(x.dtype).eps + d * unit64) * reach + 4 * d * torch.finfo(dtype).tiny
    whole = reach < torch.finfo(dtype).max / 4  # else something may overflow; False for NaN
    return indices, whole & ((m == len(y)) | (best[:, -1].double() > best[:, k - 1].double() + slack))


def _scores(x: torch.Tensor, y: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    g = norms.square().to(x.dtype).expand(len(x), -1)
    for start in range(0, x.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        g = torch.addmm(g, x[:, part], y[:, part].T, alpha=-2)
    return g


def _norms(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)


def _l2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # the matrix-product form turns a distance of zero into one of about 1e-3
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").to(x.dtype)


def _nearest_of(x: torch.Tensor, y: torch.Tensor, candidates: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of every sample's own candidates (B, m)."""
    candidates, found = candidates.sort(1).values, []
    size = max(1, _NUMBERS // max(1, candidates.shape[1] * x.shape[1]))
    for start in range(0, max(1, len(x)), size):
        rows = slice(start, start + size)
        near = y[candidates[rows].to(y.device)].to(x)
        found.append(_first(_l2(x[rows, None], near)[:, 0], candidates[rows], k))
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def _search_all(x: torch.Tensor, y: torch.Tensor, k: int, chunk_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of all, by every distance."""
    distances, indices = x.new_empty((len(x), 0)), torch.empty((len(x), 0), dtype=torch.int64, device=x.device)
    for start in range(0, len(y), chunk_size):
        chunk = y[start : start + chunk_size].to(x)
        d = torch.cat([_l2(block, chunk) for block in x.split(_BLOCK)])
        i = torch.arange(start, start + len(chunk), device=x.device).expand_as(d)
        distances, indices = _first(torch.cat([distances, d], 1), torch.cat([indices, i], 1), k)
    return distances, indices


def _first(distances: torch.Tensor, indices: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :k], indices.gather(1, order[:, :k])


def distinct_images(images: torch.Tensor) -> torch.Tensor:
    """(m,) indices, ascending, of the images (n, ...) that equal no earlier one in every number."""
    seen: set[bytes] = set()
    first = []
    for i, image in enumerate((images.detach().cpu() + 0).numpy()):  # -0.0 + 0 is 0.0, the equal number
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            first.append(i)
    return torch.tensor(first, dtype=torch.int64)


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
        is_memorized, reference (`torch.Tensor`, (B,)): bool, from `memorized`, the same noise in the same place.
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
    _check_images(samples, training)
    if space == "pixels":
        _warn_of_scales(samples, training)
    if distinct is None:
        distinct = distinct_images(training)
    if len(distinct) < 2:
        raise ValueError(f"of {len(training)} training images {len(distinct)} are distinct; d1 / d2 needs at least two.")
    distances, indices = nearest_neighbors(samples, training[distinct.to(training.device)], chunk_size=chunk_size)
    memorized(distances[:0], threshold)  # refuses a wrong threshold
    return Memorization(distances, distinct.to(indices.device)[indices], space, threshold, len(training), len(distinct))
