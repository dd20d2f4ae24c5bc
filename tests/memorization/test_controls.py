"""Each control keeps the one thing it is there to keep."""

import pytest
import torch

from diffusers_kts import KTSFlowMatchScheduler
from diffusers_kts.gain import Gain
from diffusers_kts.memorization.controls import finished, net_displacement, spread_evenly, with_equal_blur, with_equal_noise

SHAPINGS = [
    {"alpha_0": 0.01, "beta_0": 0.01},
    {"alpha_0": 0.05, "beta_0": 0.0},
    {"alpha_0": 0.3, "beta_0": 0.4, "early_schedule": "exponential", "late_schedule": "linear", "tau_split": 0.3},
]


def run(steps, velocity, x, shift=1.0, **shaping):
    """The end of a run and its record."""
    scheduler = KTSFlowMatchScheduler(shift=shift, **shaping)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x, scheduler.kpe


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_an_even_gain_goes_as_far_on_the_grid_itself(shaping, shift):
    x = velocity = torch.ones(1, 2, dtype=torch.float64)
    shaped, trace = run(7, velocity, x, shift, **shaping)
    even, flat = run(7, velocity, x, shift, **spread_evenly(trace.gains, trace.sigmas))
    torch.testing.assert_close(even, shaped, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(shaped, torch.zeros_like(x)) and float(flat.gains.std()) < 1e-12
    torch.testing.assert_close(float(flat.gains[0]), net_displacement(trace.gains, trace.sigmas))


def test_net_displacement_tends_to_the_closed_form():
    gain = Gain()
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    assert net_displacement(gain(t[:-1]), 1 - t) == pytest.approx(gain.net_displacement(), abs=1e-4)
    assert net_displacement(torch.ones(5), torch.linspace(1, 0, 6)) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_a_finished_sample_of_a_straight_field_is_the_plain_one(shaping):
    g = torch.Generator().manual_seed(0)
    x, velocity = torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
    plain, _ = run(9, velocity, x, 2.0, alpha_0=0.0, beta_0=0.0)
    shaped, trace = run(9, velocity, x, 2.0, **shaping)
    assert (shaped - plain).abs().max() > 1e-3
    torch.testing.assert_close(finished(shaped, velocity, trace.gains, trace.sigmas), plain, atol=1e-5, rtol=1e-5)


def test_noise_is_as_strong_as_the_difference_of_each_sample_and_its_own():
    plain = torch.rand(4, 1, 5, 6, dtype=torch.float64)
    shaped = plain + torch.tensor([0.0, 0.01, 0.1, 1.0]).reshape(-1, 1, 1, 1) * torch.randn(4, 1, 5, 6)
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    noisy = with_equal_noise(plain, shaped, generators)

    def rms(x):
        return x.square().flatten(1).mean(1).sqrt()

    torch.testing.assert_close(rms(noisy - plain), rms(shaped - plain))
    assert torch.equal(noisy[0], plain[0])
    alone = with_equal_noise(plain[2:3], shaped[2:3], [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(alone, noisy[2:3])
    directions = (noisy - plain)[1:].flatten(1)
    assert abs(float(torch.cosine_similarity(directions[0], directions[1], dim=0))) < 0.6  # not one noise for all


def test_blur_changes_each_sample_as_much_as_the_difference_does_or_to_its_mean():
    g = torch.Generator().manual_seed(0)
    plain = torch.rand(4, 2, 8, 9, generator=g, dtype=torch.float64)
    size = torch.tensor([0.0, 0.01, 0.1, 5.0]).reshape(-1, 1, 1, 1)
    blurred = with_equal_blur(plain, plain + size * torch.randn(plain.shape, generator=g))
    rms = (blurred - plain).square().flatten(1).mean(1).sqrt()
    assert torch.equal(blurred[0], plain[0])
    torch.testing.assert_close(rms[1:3], size.flatten()[1:3].double(), rtol=0.1, atol=0)  # the noise's own rms
    torch.testing.assert_close(blurred[3], plain[3].mean((1, 2), keepdim=True).expand(2, 8, 9), rtol=1e-3, atol=1e-3)
    assert blurred[2].std() < blurred[1].std() < plain[1].std()
    torch.testing.assert_close(with_equal_blur(plain[1:2], blurred[1:2]), blurred[1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: net_displacement(torch.ones(2, 5), torch.ones(6)), r"\(N,\) and \(N \+ 1,\)"),
        (lambda: spread_evenly(torch.ones(5), torch.ones(5)), "KPETrace"),
        (lambda: with_equal_noise(torch.ones(2, 3), torch.ones(3, 3)), "same noises"),
        (lambda: with_equal_blur(torch.ones(2, 3), torch.ones(2, 3)), "images or latents"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
