"""Quality and coverage of a set of samples in a feature space: Frechet distance, precision and recall.

A number of either kind compares only with others in the same space with as many samples: name both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import eigh, svdvals

from ..memorization.neighbors import nearest_neighbors


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean (d,) and covariance (d, d), float64, of a set of features; a reference set needs no more than these.

    Attributes:
        rows: (n, d) centered features over ``sqrt(n - 1)``, kept where n < d: a root that is quicker found.
    """

    mean: np.ndarray
    covariance: np.ndarray
    rows: np.ndarray | None = None

    @cached_property
    def root(self) -> np.ndarray:
        """(r, d) a root R of the covariance, ``R^T R``."""
        if self.rows is not None:
            return self.rows
        values, vectors = eigh(self.covariance)
        values[values < len(values) * np.finfo(float).eps * values[-1]] = 0  # rounding noise, whose root would not be small
        return (vectors * np.sqrt(values)) @ vectors.T

    @classmethod
    def of(cls, features: torch.Tensor) -> "FeatureStatistics":
        """Of features (n, ...), flattened; computed in float64.

        Raises:
            ValueError: fewer than two rows, or a number that is not finite.
        """
        if len(features) < 2:
            raise ValueError(f"there are {len(features)} features; a covariance needs at least two.")
        x = features.detach().cpu().double().flatten(1).numpy()
        if not np.isfinite(x).all():
            bad = int((~np.isfinite(x).all(1)).argmax())
            raise ValueError(f"the features of sample {bad} are not finite; leave such samples out and say how many.")
        n, d = x.shape
        rows = (x - x.mean(0)) / np.sqrt(n - 1)
        return cls(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)), rows if n < d else None)


def frechet_distance(a: FeatureStatistics | torch.Tensor, b: FeatureStatistics | torch.Tensor) -> float:
    """Frechet distance of two Gaussians, ``||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})`` (Heusel et al. 2017), squared
    feature units; with Inception features it is the FID.

    The trace of the root is the sum of the singular values of ``R_a R_b^T`` for any roots ``C = R^T R``, which stays real and
    accurate where covariances are singular (fewer samples than dimensions).

    Args:
        a (`FeatureStatistics`, or `torch.Tensor` (n, d)): of one set.
        b (`FeatureStatistics`, or `torch.Tensor` (m, d)): of the other, in the same space.

    Raises:
        ValueError: dimensions differ, or as `FeatureStatistics.of`.
    """
    a, b = (s if isinstance(s, FeatureStatistics) else FeatureStatistics.of(s) for s in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"one set has {len(a.mean)} dimensions, the other {len(b.mean)}; give features of the same network.")
    overlap = svdvals(a.root @ b.root.T).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(0.0, float(distance))


@dataclass(frozen=True)
class PrecisionRecall:
    """``precision``: share of samples inside the manifold of real images; ``recall``: share of real images inside that of the
    samples; ``k``: nearest neighbor whose distance is a point's radius."""

    precision: float
    recall: float
    k: int


def precision_recall(samples: torch.Tensor, real: torch.Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019): a set's manifold is the union of balls around its points, each
    out to the point's k-th nearest neighbor within the set.

    Args:
        samples (`torch.Tensor`, (B, ...)): features of the samples.
        real (`torch.Tensor`, (n, ...)): features of real images; the paper takes equally many of each.
        k (`int`, defaults to 3): the paper's.

    Raises:
        ValueError: ``k`` or fewer points in a set, or shapes that do not match.
    """
    for name, points in (("samples", samples), ("real images", real)):
        if not 1 <= k < len(points):
            raise ValueError(f"k is {k} for {len(points)} {name}; give at least 1 and fewer than there are.")
    return PrecisionRecall(_inside(samples, real, k), _inside(real, samples, k), k)


def _inside(points: torch.Tensor, centres: torch.Tensor, k: int) -> float:
    """Share of points in a ball around any centre; the surface counts, up to rounding."""
    return float(torch.cat([inside.any(1) for inside in _balls(points, centres, k)]).double().mean())


@dataclass(frozen=True)
class DensityCoverage:
    """``density``: balls of real images in which a sample lies, over ``k``, about 1 where both are alike; ``coverage``: share
    of real images whose ball holds a sample."""

    density: float
    coverage: float
    k: int


def density_coverage(samples: torch.Tensor, real: torch.Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020): as precision and recall, but with the balls of real images alone, which
    are counted, so that an outlier among them does little.

    Args:
        samples (`torch.Tensor`, (B, ...)): features of the samples.
        real (`torch.Tensor`, (n, ...)): features of real images.
        k (`int`, defaults to 5): the paper's.

    Raises:
        ValueError: ``k`` or fewer real images, or shapes that do not match.
    """
    if not 1 <= k < len(real):
        raise ValueError(f"k is {k} for {len(real)} real images; give at least 1 and fewer than there are.")
    count, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=samples.device)
    for inside in _balls(samples, real, k):
        count += int(inside.sum())
        covered |= inside.any(0)
    return DensityCoverage(count / (k * len(samples)), float(covered.double().mean()), k)


def _balls(points: torch.Tensor, centres: torch.Tensor, k: int) -> Iterator[torch.Tensor]:
    """Whether points lie in the ball around each centre, (b, n), a part of the points at a time."""
    points, centres = points.flatten(1).double(), centres.flatten(1).double()
    radii = nearest_neighbors(centres, centres, k + 1)[0][:, -1]  # the centre itself is the first
    squares = centres.square().sum(1)
    for part in points.split(256):
        own = part.square().sum(1, keepdim=True)
        excess = own + squares - 2 * part @ centres.T - radii.square()
        yield excess <= 1e-12 * (own + squares)
