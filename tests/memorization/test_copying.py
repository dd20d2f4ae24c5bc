"""Published measures of copying against the published algorithms, stated again in numpy on whole distance matrices."""

import math

import numpy as np
import pytest
import torch

from diffusers_kts.memorization import authentic, calibrated_l2, copying_statistic, measure_memorization


def distances(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=2)


@pytest.fixture(scope="module")
def features():
    """150 training features, and 60 of samples, every fourth of which nearly copies one."""
    rng = np.random.default_rng(0)
    training, samples = rng.normal(size=(150, 6)), rng.normal(size=(60, 6))
    samples[::4] = training[:15] + 0.05 * rng.normal(size=(15, 6))
    return samples, training


def test_authpct_is_that_of_the_published_implementation(features):
    samples, training = features
    among = distances(training, training) + np.diag(np.full(150, np.inf))
    apart = distances(training, samples)
    published = among.min(0)[apart.argmin(0)] < apart.min(0)  # as dgm-eval (Stein et al. 2023) has it
    ours, known = torch.from_numpy(samples), torch.from_numpy(training)
    spacing = lambda i: measure_memorization(known[i], known, "x").distances[:, 1]  # noqa: E731
    found = authentic(measure_memorization(ours, known, "x"), spacing)
    assert found.tolist() == published.tolist() and not found[::4].any() and 0.2 < found.float().mean() < 0.7


@pytest.mark.parametrize("n", [50, 200])
def test_calibrated_l2_is_the_published_formula(features, n, monkeypatch):
    monkeypatch.setattr("diffusers_kts.memorization.copying.CHUNK_SIZE", 40)
    samples, training = features
    apart = np.sort(distances(samples, training), axis=1)
    published = apart[:, 0] / (0.5 * apart[:, :n].mean(1))  # Carlini et al. 2023, section 5.1
    d1 = torch.from_numpy(apart[:, 0])
    found = calibrated_l2(d1, torch.from_numpy(samples), torch.from_numpy(training), n)
    assert found.tolist() == pytest.approx(published.tolist()) and (found < 1).tolist() == (published < 1).tolist()
    assert (found[::4] < 0.4).all()


@pytest.mark.parametrize("offset", [100, 1000])
def test_calibrated_l2_does_not_depend_on_where_features_lie(features, offset):
    ours, known = (torch.from_numpy(offset + 0.1 * part).float() for part in features)
    apart = np.sort(distances(ours.double().numpy(), known.double().numpy()), axis=1)
    found = calibrated_l2(torch.from_numpy(apart[:, 0]), ours, known)
    assert found.numpy() == pytest.approx(apart[:, 0] / (0.5 * apart[:, :50].mean(1)), rel=1e-5)


def test_the_copying_statistic_counts_pairs():
    g = torch.Generator().manual_seed(0)
    samples, real = torch.rand(30, generator=g), torch.rand(50, generator=g)
    pairs = (samples[:, None] > real).sum().item()
    assert copying_statistic(samples, real) == pytest.approx((pairs - 750) / math.sqrt(30 * 50 * 81 / 12))
    assert abs(copying_statistic(real, real)) < 1e-9 and copying_statistic(samples / 100, real) < -3
