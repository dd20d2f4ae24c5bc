"""Nearest neighbours against brute force, the memorised fraction against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_kts.memorization import memorized, memorized_fraction, nearest_neighbours


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), b=st.integers(1, 7), chunk_size=st.integers(1, 50), seed=st.integers(0, 99))
def test_neighbours_equal_brute_force_for_any_chunk(n, b, chunk_size, seed):
    g = torch.Generator().manual_seed(seed)
    samples, training = torch.rand(b, 1, 3, 4, generator=g), torch.rand(n, 1, 3, 4, generator=g)
    distances, indices = nearest_neighbours(samples, training, chunk_size=chunk_size)
    exact = (samples.double()[:, None] - training.double()[None]).square().sum((2, 3, 4)).sqrt()
    torch.testing.assert_close(distances.double(), exact.sort(1).values[:, :2], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(exact.gather(1, indices), distances.double(), atol=1e-6, rtol=1e-6)
    whole = nearest_neighbours(samples, training, chunk_size=n)
    assert torch.equal(whole[0], distances) and torch.equal(whole[1], indices)


def test_a_copy_is_at_distance_zero_and_memorised():
    training = torch.rand(50, 1, 28, 28)
    distances, indices = nearest_neighbours(training[7:8], training)
    assert distances[0, 0] == 0 and indices[0, 0] == 7
    assert memorized(distances).item()


def test_memorised_is_the_ratio_below_a_third():
    distances = torch.tensor([[1.0, 3.1], [1.0, 2.9], [0.0, 0.0], [float("nan"), float("nan")]])
    assert memorized(distances).tolist() == [True, False, True, False]
    assert memorized(distances, threshold=0.5).tolist() == [True, True, True, False]


def test_interval_is_exact():
    none, some = memorized_fraction(torch.zeros(64, dtype=torch.bool)), memorized_fraction(torch.arange(64) < 16)
    assert (none.fraction, none.low) == (0, 0) and none.high == pytest.approx(1 - 0.025 ** (1 / 64))
    assert some.low < some.fraction == 0.25 < some.high


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: nearest_neighbours(x, torch.rand(5, 3)), ValueError, "same shape"),
        (lambda x: nearest_neighbours(x, (255 * x).byte()), TypeError, "uint8"),
        (lambda x: nearest_neighbours(x, x[:1]), ValueError, "k is 2 for 1"),
        (lambda x: nearest_neighbours(x, x, chunk_size=0), ValueError, "chunk_size is 0"),
        (lambda x: memorized(x[:, :1]), ValueError, r"\(B, 2\)"),
        (lambda x: memorized(x, threshold=0), ValueError, "threshold is 0"),
        (lambda x: memorized_fraction(x[:0] > 0), ValueError, "no samples"),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.rand(4, 2))
