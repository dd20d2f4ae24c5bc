"""Rank correlation: known values, and an interval that holds the truth as often as it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from diffusers_kts.evaluate.correlation import rank_correlation


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, r, trials = np.random.default_rng(0), 0.6, 500
    truth, held = 6 / math.pi * math.asin(r / 2), 0  # Spearman's of a bivariate normal with correlation r
    for _ in range(trials):
        x, e = rng.normal(size=(2, 60))
        found = rank_correlation(x, r * x + math.sqrt(1 - r * r) * e)
        held += found.low < truth < found.high
    assert 0.93 < held / trials < 0.97


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=30))
def test_it_is_pearson_of_ranks_and_knows_order_alone(pairs):
    x, y = np.array(pairs, float).T
    found = rank_correlation(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found is None
        return
    assert found.rho == pytest.approx(np.corrcoef(rankdata(x), rankdata(y))[0, 1], abs=1e-12)
    assert -1 <= found.low <= found.rho + 1e-9 and found.rho - 1e-9 <= found.high <= 1
    assert rank_correlation(np.exp(x), y**3).rho == pytest.approx(found.rho, abs=1e-12)
    assert rank_correlation(-x, y).low == pytest.approx(-found.high, abs=1e-9)


def test_pairs_that_are_not_whole_are_left_out():
    x, y = np.array([1, 2, 3, 4, np.nan, 6]), np.array([2, 1, 3, 5, 0, np.inf])
    assert rank_correlation(x, y) == rank_correlation(x[:4], y[:4]) and rank_correlation(x, y).n == 4
    assert rank_correlation(x[:3], y[:3]) is None
