"""Tests of changes against their definitions."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.science import significance
from benchmarks.science.significance import GROUPS, holm, jackknife, rank_correlation, ratio_interval


def a_test(name, p, change=-1.0):
    return significance.Test(name, change, -2.0, 2.0, p)


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    found = holm([a_test("a", 0.01), a_test("b", 0.04), a_test("c", 0.03), a_test("d", 0.5)])
    assert [found[n].adjusted for n in "abcd"] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert found["a"].agrees_with(-3) == "agrees" and found["a"].agrees_with(3) == "disagrees"
    assert found["b"].agrees_with(-3) == "undecided"


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jackknife("", lambda kept: float(values[kept].mean()), 100)
    error = np.std([part.mean() for part in values.reshape(GROUPS, 5).numpy()], ddof=1) / np.sqrt(GROUPS)
    assert found.change == pytest.approx(float(values.mean()))
    assert (found.high - found.low) / 2 == pytest.approx(2.093024 * error, rel=1e-6)  # Student's t, 19 degrees of freedom
    assert jackknife("", lambda kept: 0.0, 40).p_value == 1


def test_correlation_within_classes_does_not_see_what_differs_between_them():
    g = torch.Generator().manual_seed(0)
    x, y, classes = torch.randn(600, generator=g), torch.randn(600, generator=g), torch.arange(600) % 3
    assert rank_correlation("", x, y).change == pytest.approx(spearmanr(x, y).statistic)
    assert rank_correlation("", x + 5 * classes, y + 5 * classes).change > 0.7
    within = rank_correlation("", x + 5 * classes, y + 5 * classes, classes)
    assert within.change == pytest.approx(rank_correlation("", x, y, classes).change) and within.p_value > 0.05
    assert rank_correlation("", x, x**3, classes).p_value < 1e-12


def test_a_ratio_of_shares_has_an_interval_of_pairs():
    reference = torch.arange(1000) < 400
    hits = torch.arange(1000) < 200  # half of the same
    value, low, high = ratio_interval(hits, reference)
    assert value == 0.5 and 0.44 < low < 0.5 < high < 0.56
