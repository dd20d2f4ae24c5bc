"""Frechet distance against closed forms, precision and recall against their definition."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from diffusers_kts.features.frechet import FeatureStatistics, density_coverage, frechet_distance, precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_closed_form_of_gaussians():
    a = FeatureStatistics(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = FeatureStatistics(np.array([1.0, 0.0, 2.0]), np.diag([4.0, 4.0, 0.0]))
    # commuting covariances: squared distance of means and of the roots
    assert frechet_distance(a, b) == pytest.approx(5 + (1 - 2) ** 2 + 0 + 3**2, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_agrees_with_the_matrix_root_where_covariances_are_regular():
    a, b = (FeatureStatistics.of(normal(200, 12, seed=s) @ normal(12, 12, seed=s + 9)) for s in (1, 2))
    root = np.trace(sqrtm(a.covariance @ b.covariance).real)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_give_no_noise():
    few = normal(5, 40)
    assert frechet_distance(few, few) < 1e-10
    # a shift changes the mean alone, a scale all distances by its square
    assert frechet_distance(few, few + 2) == pytest.approx(40 * 4, rel=1e-9)
    other = normal(7, 40, seed=3)
    assert frechet_distance(3 * few, 3 * other) == pytest.approx(9 * frechet_distance(few, other), rel=1e-9)
    turn = torch.linalg.qr(normal(40, 40, seed=4)).Q
    assert frechet_distance(few @ turn, other @ turn) == pytest.approx(frechet_distance(few, other), rel=1e-9)


def test_rows_are_a_root_of_the_covariance():
    """Few samples in many dimensions: rows and covariance give the same distance."""
    sets = [FeatureStatistics.of(normal(n, 40, seed=n)) for n in (5, 30, 90)]
    kept = [FeatureStatistics(one.mean, one.covariance) for one in sets]
    assert [one.root.shape for one in (*sets, *kept)] == [(5, 40), (30, 40), *[(40, 40)] * 4]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert frechet_distance(sets[a], sets[b]) == pytest.approx(frechet_distance(kept[a], kept[b]), rel=1e-9)


def test_precision_and_recall_are_shares_of_points_in_balls():
    g = torch.Generator().manual_seed(0)
    samples, real = torch.randn(60, 3, generator=g), 1.5 * torch.randn(80, 3, generator=g) + 0.5
    got = precision_recall(samples, real, k=3)

    def share(points, centres):
        within = torch.cdist(centres, centres).sort(1).values[:, 3]
        return (torch.cdist(points, centres) <= within).any(1).float().mean().item()

    assert got.precision == pytest.approx(share(samples, real)) and got.recall == pytest.approx(share(real, samples))
    assert 0 < got.recall < 1 and got.precision != got.recall


def test_density_and_coverage_equal_those_of_the_published_implementation():
    g = torch.Generator().manual_seed(0)
    real, samples = torch.rand(60, 5, generator=g).double(), 0.2 + 0.5 * torch.rand(40, 5, generator=g).double()
    found = density_coverage(samples, real, k=5)  # numbers of prdc 0.2
    assert (found.density, found.coverage) == (pytest.approx(1.83), pytest.approx(0.9333333333333333))
    far, same = density_coverage(samples + 100, real), density_coverage(real, real)
    assert (far.density, far.coverage) == (0, 0) and same.coverage == 1 and same.density > 1


def test_precision_and_recall_at_the_extremes():
    real = torch.rand(50, 2, 2)
    same, far = precision_recall(real, real), precision_recall(real + 100, real)
    assert (same.precision, same.recall, far.precision, far.recall) == (1, 1, 0, 0)
    one_mode = precision_recall(real[:1] + 1e-4 * torch.rand(20, 2, 2), real)
    assert one_mode.precision == 1 and one_mode.recall < 0.2
    copies = real[:1].expand(50, 2, 2)  # balls of radius zero
    assert precision_recall(copies, copies).precision == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: frechet_distance(x, x[:, :2]), "4 dimensions, the other 2"),
        (lambda x: frechet_distance(x[:1], x), "at least two"),
        (lambda x: frechet_distance(torch.where(x > x.min(), x, math.nan), x), "not finite"),
        (lambda x: precision_recall(x, x[:3]), "k is 3 for 3 real images"),
        (lambda x: precision_recall(x, x, k=0), "k is 0"),
        (lambda x: density_coverage(x, x[:5]), "k is 5 for 5 real images"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.rand(9, 4))
