"""The gain against the paper's numbers, and its closed-form integral against quadrature."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusers_kts.gain import SCHEDULES, Gain


@pytest.mark.parametrize(("alpha_0", "beta_0", "expected"), [(0.01, 0.01, 0.98155), (0.05, 0, 1.015), (0, 0.02, 0.95711)])
def test_net_displacement_has_the_known_values(alpha_0, beta_0, expected):
    assert Gain(alpha_0, beta_0).net_displacement() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("early", "late"), list(itertools.product(SCHEDULES, SCHEDULES)))
def test_net_displacement_is_the_integral_of_the_gain(early, late):
    gain = Gain(0.3, 0.04, tau_split=0.45, k=2.0, early_schedule=early, late_schedule=late)
    t = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    assert gain.net_displacement() == pytest.approx(gain(t).mean().item(), abs=1e-9)
    inside = t[(t > 0.2) & (t < 0.8)]
    assert gain.net_displacement(0.2, 0.8) == pytest.approx(gain(inside).sum().item() / 1e6, abs=1e-6)


def test_gain_at_the_ends():
    assert Gain()(0.0) == pytest.approx(1.01)
    assert Gain()(1.0) == pytest.approx(1 - 0.190855, abs=1e-6)
    assert Gain(early_schedule="constant", late_schedule="constant")(0.6) == 0.99


@pytest.mark.parametrize(("late", "k"), [("linear", 3.0), ("constant", 3.0), ("exponential", 0.5), ("exponential", 6.0)])
def test_the_largest_landing_stops_at_the_data_and_no_more_is_allowed(late, k):
    largest = Gain(beta_0=0.0, k=k, late_schedule=late).largest_beta_0
    assert Gain(beta_0=largest, k=k, late_schedule=late)(1.0) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="would reverse"):
        Gain(beta_0=largest * 1.0001, k=k, late_schedule=late)


@pytest.mark.parametrize(
    "wrong",
    [{"beta_0": 0.06}, {"alpha_0": -1.5}, {"tau_split": 1.0}, {"tau_split": 0.0}, {"k": 0.0}, {"alpha_0": float("nan")},
     {"early_schedule": "cosine"}, {"beta_0": "0.01"}],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Gain(**wrong)


@given(st.floats(0, 1), st.sampled_from(SCHEDULES), st.sampled_from(SCHEDULES))
def test_a_number_and_a_tensor_have_the_same_gain(t, early, late):
    gain = Gain(0.3, 0.04, 0.45, 2.0, early, late)
    of_tensor = gain(torch.tensor([t], dtype=torch.float64))
    assert isinstance(gain(t), float) and gain(t) == pytest.approx(of_tensor.item(), rel=1e-14)
    assert gain(of_tensor.float()).dtype == torch.float32
