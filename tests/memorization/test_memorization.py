"""Nearest neighbors against brute force, the memorized fraction against its definition."""

import warnings
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from diffusers_kts.memorization.fraction import (
    bootstrap_interval,
    measure_memorization,
    memorized,
    memorized_fraction,
    paired_difference,
)
from diffusers_kts.memorization.neighbors import distinct_images, nearest_neighbors


def brute_force(samples, training, k):
    """All distances in float64, rounded, then sorted; of equal ones the lower index first."""
    x, y = samples.double().flatten(1), training.to(samples.dtype).double().flatten(1)
    d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").to(samples.dtype)
    distances, indices = d.sort(dim=1, stable=True)
    return distances[:, :k], indices[:, :k]


KINDS = ["random", "rounded", "copies", "near copies", "tiny", "huge", "offset", "one large", "nan", "inf"]


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    n=st.integers(2, 60),
    b=st.integers(1, 7),
    k=st.integers(1, 5),
    chunk_size=st.integers(1, 70),
    seed=st.integers(0, 999),
)
def test_neighbors_equal_brute_force_for_any_chunk(kind, dtype, n, b, k, chunk_size, seed):
    g = torch.Generator().manual_seed(seed)
    samples, training = torch.rand(b, 1, 3, 4, generator=g, dtype=dtype), torch.rand(n, 1, 3, 4, generator=g, dtype=dtype)
    picked = training[torch.randint(n, (b,), generator=g)]
    if kind == "rounded":  # many ties
        samples, training = samples.round(), training.round()
    elif kind == "copies":
        samples, training = picked, training[torch.randint(n, (n,), generator=g)]
    elif kind == "near copies":  # closer than the rounding of a matrix product
        training = picked[:1] + 1e-5 * training
        samples = picked
    elif kind in ("tiny", "huge"):
        samples, training = (x * (1e-22 if kind == "tiny" else 1e19) for x in (samples, training))
    elif kind == "offset":
        samples, training = samples + 1000, training + 1000
    elif kind == "one large":
        training[0] *= 1e4
    elif kind in ("nan", "inf"):
        samples[0, 0, 0, 0] = training[1, 0, 0, 0] = float(kind)
    k = min(k, n)
    distances, indices = nearest_neighbors(samples, training, k, chunk_size)
    expected = brute_force(samples, training, k)
    torch.testing.assert_close(distances, expected[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, expected[1])


def test_neighbors_of_large_images_equal_brute_force():
    """More dimensions than one matrix product sums, more samples than one block holds."""
    g = torch.Generator().manual_seed(1)
    training, samples = torch.rand(90, 3, 40, 41, generator=g), torch.rand(1030, 3, 40, 41, generator=g).half()
    distances, indices = nearest_neighbors(samples, training, chunk_size=64)
    expected = brute_force(samples.float(), training, 2)
    assert torch.equal(distances, expected[0]) and torch.equal(indices, expected[1])


def near_one_image(distance):
    g = torch.Generator().manual_seed(2)
    image = torch.rand(784, generator=g)
    return image + distance * torch.rand(5, 784, generator=g), image + distance * torch.rand(300, 784, generator=g)


def test_what_a_matrix_product_cannot_tell_apart_is_searched_whole():
    samples, training = near_one_image(1e-4)
    distances, indices = nearest_neighbors(samples, training)
    expected = brute_force(samples, training, 2)
    assert torch.equal(distances, expected[0]) and torch.equal(indices, expected[1])


def test_low_precision_products_change_nothing():
    """TF32 matrix products and autocast are the user's settings for a network, not for measuring."""
    samples, training = near_one_image(0.03)
    expected = brute_force(samples, training, 2)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distances, indices = nearest_neighbors(samples, training)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(distances, expected[0]) and torch.equal(indices, expected[1])


def test_a_copied_training_image_hides_no_memorization():
    training = torch.rand(40, 1, 6, 6)
    training[30] = training[4]
    sample = (training[4] + 0.01 * torch.rand(1, 6, 6))[None]
    assert not memorized(nearest_neighbors(sample, training)[0]).item()  # d1 == d2: both are copies
    found = measure_memorization(sample, training)
    assert found.f_mem.fraction == 1 and found.indices[0, 0] == 4 and found.indices[0, 1] not in (4, 30)
    assert (found.num_training, found.num_distinct, found.space, found.threshold) == (40, 39, "pixels", pytest.approx(1 / 3))
    without = torch.arange(40) != 30
    assert torch.equal(found.distances, nearest_neighbors(sample, training[without])[0])


def test_distinct_images_are_the_first_of_each():
    images = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [-0.0, 0.0], [2.0, 1.0]])
    assert distinct_images(images).tolist() == [0, 1, 4]


def test_features_carry_the_name_of_their_space_and_know_copies_by_their_images():
    images = torch.rand(30, 1, 4, 4)
    images[20] = images[3]
    network = torch.nn.Linear(16, 5).requires_grad_(False)
    features = network(images.flatten(1))
    features[20] += 1e-6  # as a network may, in another batch
    sample = features[3:4] + 1e-4
    plain = measure_memorization(sample, features, space="linear")
    told = measure_memorization(sample, features, space="linear", distinct=distinct_images(images), threshold=0.2)
    assert plain.f_mem.count == 0 and plain.num_distinct == 30
    assert (told.f_mem.count, told.space, told.threshold, told.num_distinct) == (1, "linear", 0.2, 29)


def test_a_copy_is_at_distance_zero_and_memorized():
    training = torch.rand(50, 1, 28, 28)
    distances, indices = nearest_neighbors(training[7:8], training)
    assert distances[0, 0] == 0 and indices[0, 0] == 7
    assert memorized(distances).item()


def test_memorized_is_the_ratio_below_a_third():
    distances = torch.tensor([[1.0, 3.1], [1.0, 2.9], [0.0, 0.0], [float("nan"), float("nan")]])
    assert memorized(distances).tolist() == [True, False, True, False]
    assert memorized(distances, threshold=0.5).tolist() == [True, True, True, False]


def test_no_samples_have_no_neighbors():
    distances, indices = nearest_neighbors(torch.rand(0, 3), torch.rand(40, 3))
    assert distances.shape == indices.shape == (0, 2)


def test_interval_is_exact():
    none, some = memorized_fraction(torch.zeros(64, dtype=torch.bool)), memorized_fraction(torch.arange(64) < 16)
    assert (none.fraction, none.low) == (0, 0) and none.high == pytest.approx(1 - 0.025 ** (1 / 64))
    assert some.low < some.fraction == 0.25 < some.high


def test_bootstrap_interval_is_the_binomial_quantiles_and_seeded():
    hits = torch.arange(200) < 60
    low, high = bootstrap_interval(hits)
    expected = binom.ppf([0.025, 0.975], 200, 0.3) / 200  # resampling a share is drawing from this
    assert (low, high) == pytest.approx(expected, abs=0.011)
    assert bootstrap_interval(hits) == (low, high) != bootstrap_interval(hits, seed=1)
    narrow = bootstrap_interval(hits, confidence=0.5)
    assert low < narrow[0] < 0.3 < narrow[1] < high
    assert bootstrap_interval(hits[:60]) == (1, 1)


def test_paired_difference_looks_at_the_noises_that_differ():
    plain, shaped = torch.arange(100) < 50, (torch.arange(100) < 42) | (torch.arange(100) == 99)
    result = paired_difference(shaped, plain)
    assert result.difference == pytest.approx(-0.07) and result.low < -0.07 < result.high < 0
    assert result.p_value == pytest.approx(2 * sum(comb(9, i) for i in range(2)) / 2**9)  # 8 down, 1 up
    same = paired_difference(plain, plain)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: nearest_neighbors(x, torch.rand(5, 3)), ValueError, "same shape"),
        (lambda x: nearest_neighbors(x, (255 * x).byte()), TypeError, "uint8"),
        (lambda x: nearest_neighbors(x, x[:1]), ValueError, "k is 2 for 1"),
        (lambda x: nearest_neighbors(x, x, chunk_size=0), ValueError, "chunk_size is 0"),
        (lambda x: memorized(x[:, :1]), ValueError, r"\(B, 2\)"),
        (lambda x: memorized(x, threshold=0), ValueError, "threshold is 0"),
        (lambda x: memorized_fraction(x[:0] > 0), ValueError, "no samples"),
        (lambda x: bootstrap_interval(x, confidence=1), ValueError, "confidence is 1"),
        (lambda x: bootstrap_interval(x, num_resamples=0), ValueError, "num_resamples is 0"),
        (lambda x: paired_difference(x > 0, x[:1] > 0), ValueError, "same noises"),
        (lambda x: measure_memorization(x, x[:1].expand(4, 2)), ValueError, "1 are distinct"),
        (lambda x: measure_memorization(x, x, threshold=2), ValueError, "threshold is 2"),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.rand(4, 2))


@pytest.mark.parametrize("factor", [255, 2, 1 / 255])
def test_pixels_on_another_scale_are_told(factor):
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="where scales differ, no sample is near"):
        measure_memorization(images, images * factor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_memorization(images, images * factor, space="features").space == "features"
        assert measure_memorization(images, images * 0.9).f_mem.n == 20


def test_arrays_are_refused_with_the_remedy():
    images = torch.rand(4, 1, 4, 4)
    for pair in ((images.numpy(), images), (images, images.numpy())):
        with pytest.raises(TypeError, match="is ndarray; give a tensor of floats, torch.from_numpy"):
            measure_memorization(*pair)
