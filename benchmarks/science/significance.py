"""Tests of changes between samplers that start from the same noises, and their correction for many of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import norm, rankdata, t

from diffusers_kts.features.frechet import FeatureStatistics, frechet_distance
from diffusers_kts.memorization.fraction import paired_difference

LEVEL = 0.05
GROUPS = 20  # of the jackknife


@dataclass(frozen=True)
class Test:
    """A measured change with its 95 % interval and p-value, ``adjusted`` for the other tests of the page."""

    name: str
    change: float
    low: float
    high: float
    p_value: float
    adjusted: float = 1.0

    def agrees_with(self, reported: float) -> str:
        """Against the sign of a reported change: "agrees", "disagrees", or "undecided" where the test does not reject."""
        if self.adjusted >= LEVEL:
            return "undecided"
        return "agrees" if (self.change < 0) == (reported < 0) else "disagrees"


def holm(tests: Iterable[Test]) -> dict[str, Test]:
    """The tests by name, with p-values adjusted together (Holm 1979): the k-th smallest of m times ``m - k + 1``."""
    ordered, largest, found = sorted(tests, key=lambda test: test.p_value), 0.0, {}
    for rank, test in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * test.p_value))
        found[test.name] = replace(test, adjusted=largest)
    return found


def f_mem_test(name: str, hits: torch.Tensor, reference: torch.Tensor) -> Test:
    """Of the share memorized, (B,) bool each: exact McNemar, bootstrap interval of the pairs."""
    found = paired_difference(hits, reference)
    return Test(name, found.difference, found.low, found.high, found.p_value)


def ratio_interval(hits: torch.Tensor, reference: torch.Tensor, num_resamples: int = 2000) -> tuple[float, float, float]:
    """A share memorized over that of the reference, (B,) bool each, with its bootstrap interval of the pairs."""
    rng, a, b = np.random.default_rng(0), hits.double().numpy(), reference.double().numpy()
    rows = (rng.integers(len(a), size=len(a)) for _ in range(num_resamples))
    low, high = np.nanquantile([a[row].mean() / max(b[row].mean(), 1e-9) for row in rows], (0.025, 0.975))
    return float(a.mean() / max(b.mean(), 1e-9)), float(low), float(high)


def frechet_test(name: str, features: torch.Tensor, reference: torch.Tensor, real: FeatureStatistics) -> Test:
    """Of the Frechet distance to ``real``: samples (B, d) less ``reference`` of the same noises."""
    return jackknife(
        name, lambda kept: frechet_distance(features[kept], real) - frechet_distance(reference[kept], real), len(features)
    )


def jackknife(name: str, statistic: Callable[[torch.Tensor], float], count: int) -> Test:
    """Of a statistic of the samples kept, (m,) indices: standard error by leaving out each of `GROUPS` groups in turn, and
    Student's t."""
    group = torch.arange(count) * GROUPS // count
    without = [statistic((group != g).nonzero()[:, 0]) for g in range(GROUPS)]
    value, error = statistic(torch.arange(count)), np.sqrt((GROUPS - 1) ** 2 / GROUPS * np.var(without, ddof=1))
    reach = t.ppf(0.975, GROUPS - 1) * error
    p_value = 2 * t.sf(abs(value) / error, GROUPS - 1) if error > 0 else 1.0
    return Test(name, value, value - reach, value + reach, float(p_value))


def rank_correlation(name: str, x: torch.Tensor, y: torch.Tensor, classes: torch.Tensor | None = None) -> Test:
    """Spearman correlation of (B,) numbers, or with ``classes`` that of the ranks within each class; Fisher's z."""
    ranks = [_ranks(values.double().numpy(), classes) for values in (x, y)]
    rho = float(np.corrcoef(*ranks)[0, 1])
    z, error = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12)), 1.03 / np.sqrt(len(x) - 3)
    low, high = np.tanh([z - norm.ppf(0.975) * error, z + norm.ppf(0.975) * error])
    return Test(name, rho, float(low), float(high), float(2 * norm.sf(abs(z) / error)))


def _ranks(values: np.ndarray, classes: torch.Tensor | None) -> np.ndarray:
    """Ranks from -1/2 to 1/2, of all or within each class."""
    groups = np.zeros(len(values)) if classes is None else classes.numpy()
    ranks = np.empty(len(values))
    for group in np.unique(groups):
        own = groups == group
        ranks[own] = (rankdata(values[own]) - 0.5) / own.sum() - 0.5
    return ranks
