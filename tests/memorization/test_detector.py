"""The detector of memorized samples: what it finds where the answer is known, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from diffusers_kts.kpe.trace import KPETrace
from diffusers_kts.memorization import MemorizationDetector, fit_detector
from diffusers_kts.memorization.detector_fit import score


def record(hits, steps=20, d=50, effect=0.6, seed=0):
    """Log-normal speeds; those of memorized samples are lower by ``effect`` standard deviations from t = 0.3 on."""
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, steps + 1)
    shift = effect * 0.1 * hits[:, None] * (t[:-1] >= 0.3)
    own = 0.1 * torch.randn(len(hits), 1, generator=g).double()  # of a sample, at all times
    power = d * torch.exp(2 * (own - shift))
    turn = 0.1 / steps * d**0.5 * torch.exp(0.01 * torch.randn(len(hits), steps, generator=g).double())
    turn[:, 0] = 0
    return KPETrace(
        power.float(), 1 - t, t, torch.ones(steps), 0.6, d, settings={"scheduler": "Euler", "alpha_0": 0.0}, turn=turn.float()
    )


@pytest.fixture(scope="module")
def hits():
    return torch.arange(800) % 2 == 0


@pytest.fixture(scope="module")
def fitted(hits):
    groups = [i // 2 % 20 for i in range(800)]
    return fit_detector(record(hits), hits, groups, {"model": "abc", "guidance_scale": 1.0})


def test_it_finds_a_change_of_speed_that_no_single_time_shows(fitted, hits):
    """The speeds alone overlap (area .66); speed before and after the change together do not."""
    trace = record(hits, seed=1)
    single = score(-trace.power[:, -1].numpy(), hits.numpy(), [0] * 800)
    assert single.auc == pytest.approx(norm.cdf(0.6 / 2**0.5), abs=0.04)
    held_out = fitted.probability(trace, model="abc", guidance_scale=1.0)
    assert score(held_out.numpy(), hits.numpy(), [0] * 800).auc > 0.99
    for name in ("samples", "groups"):
        assert fitted.scores[name]["auc"] > 0.99 and fitted.scores[name]["auc_within_groups"] > 0.99
        assert fitted.scores[name]["low"] <= fitted.scores[name]["auc"] <= fitted.scores[name]["high"]


def test_where_there_is_nothing_it_finds_nothing_and_probabilities_are_the_share(hits):
    uneven = torch.arange(800) % 4 == 0
    found = fit_detector(record(uneven, effect=0.0), uneven, list(range(800)))
    assert found.scores["samples"]["low"] < 0.5 < found.scores["samples"]["high"]
    assert found.scores["samples"]["auc_within_groups"] is None  # every sample is its own group
    predicted = found.probability(record(uneven, effect=0.0, seed=2))
    assert float(predicted.mean()) == pytest.approx(0.25, abs=0.05)
    assert found.scores["samples"]["brier"] == pytest.approx(0.25 * 0.75, abs=0.02)


def test_up_to_a_time_it_reads_nothing_later(hits):
    found = fit_detector(record(hits), hits, [0] * 800)
    trace = record(hits, seed=1)
    late = trace.t[:-1] >= 0.61
    other = dataclasses.replace(trace, power=torch.where(late, 7.0, trace.power), turn=torch.where(late, 7.0, trace.turn))
    torch.testing.assert_close(found.probability(trace, 0.6), found.probability(other, 0.6), rtol=0, atol=0)
    assert "groups" not in found.scores  # one group cannot be left out


def test_saved_and_loaded_it_says_the_same(fitted, hits, tmp_path):
    trace = record(hits, seed=1)
    fitted.save(tmp_path / "detector.safetensors")
    loaded = MemorizationDetector.load(tmp_path / "detector.safetensors")
    assert torch.equal(loaded.probability(trace), fitted.probability(trace))
    assert loaded.scores == fitted.scores and loaded.about == fitted.about


def test_the_grid_of_times_is_that_of_its_weights(fitted, hits):
    """Weights of 1 on the speed at the first and the last of two times, 0 and 1: the logit is their log per dimension."""
    numbers = fitted.to_dict() | {"ends": [1.0], "bias": [0.5], "weights": [[1.0, 1.0, 0.0, 0.0]]}
    found, trace = MemorizationDetector.from_dict(numbers), record(hits)
    logit = 0.5 + (trace.power[:, [0, -1]].double() / 50).log().sum(1) / 2
    torch.testing.assert_close(found.probability(trace, model="abc", guidance_scale=1.0), logit.sigmoid())
    with pytest.raises(ValueError, match="do not belong together"):
        MemorizationDetector.from_dict(numbers | {"weights": [[1.0, 1.0, 0.0]]})


@given(cut=st.integers(0, 2000), flip=st.integers(0, 2000))
def test_a_damaged_file_is_named(fitted, tmp_path_factory, cut, flip):
    path = tmp_path_factory.mktemp("damaged") / "detector.safetensors"
    fitted.save(path)
    content = bytearray(path.read_bytes())
    content[flip % 400] ^= 0x55
    path.write_bytes(bytes(content[: max(1, len(content) - cut)]))
    try:
        MemorizationDetector.load(path)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 600


def test_another_run_is_refused_with_the_difference(fitted, hits):
    trace = record(hits)
    for other, about, words in (
        (trace, {"model": "xyz"}, "model 'abc', this run has 'xyz'"),
        (trace, {"guidance_scale": 4.0}, "guidance_scale 1.0, this run has 4.0"),
        (record(hits, steps=10), {}, "20 steps from t = 0 to 0.95, this run has 10"),
        (record(hits, d=60), {}, "d 50, this run has 60"),
        (dataclasses.replace(trace, settings={"scheduler": "Euler", "alpha_0": 0.1}), {}, "alpha_0 0.0, this run has 0.1"),
        (dataclasses.replace(trace, turn=None), {}, "the turn was not recorded"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted.probability(other, **about)


def test_too_few_samples_of_a_kind_are_refused(hits):
    few = torch.arange(800) < 24
    with pytest.raises(ValueError, match="24 of 800 samples are memorized; a detector needs at least 25"):
        fit_detector(record(few), few, [0] * 800)
    with pytest.raises(ValueError, match="800 records, 800 labels and 3 groups"):
        fit_detector(record(hits), hits, [1, 2, 3])
    with pytest.raises(FileNotFoundError, match="kts audit"):
        MemorizationDetector.load("nowhere.safetensors")


def test_scores_equal_their_definitions():
    rng = np.random.default_rng(0)
    predicted, hits = rng.random(60), rng.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in predicted[hits] for b in predicted[~hits]]
    found = score(predicted, hits, [0] * 60)
    assert (found.auc, found.auc_within_groups) == pytest.approx((np.mean(pairs),) * 2)
    assert found.brier == pytest.approx(np.mean((predicted - hits) ** 2))
    assert found.tpr_at_1_percent == pytest.approx((predicted[hits] > predicted[~hits].max()).mean())
