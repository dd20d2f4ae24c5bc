"""KTSFittedFlowMatchScheduler: fields with known solutions, its weights done by hand, odd runs, refusals."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from tiny_pipelines import TINY, call_kwargs, tiny_flux, tiny_sd3, tiny_sd3_img2img, tiny_wan

from diffusers_kts import KPEMonitorPipeline, KTSFittedFlowMatchScheduler, KTSFlowMatchScheduler
from diffusers_kts.schedulers.adams_bashforth import adams_bashforth

TIMES = [0.0, 0.1, 0.35, 0.6, 1.0]
ROWS = [[1.02], [1.6, -0.65], [1.4, -0.5, 0.05], [1.2, -0.3]]
FIT = {"flow_times": TIMES, "weights": ROWS}


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def multistep(times, order=2):
    weights = [adams_bashforth(times, i, order) for i in range(len(times) - 1)]
    return KTSFittedFlowMatchScheduler(fits=[{"flow_times": times, "weights": weights}])


def run(scheduler, field, x, steps=None, begin=0):
    """Integrate ``dx/dt = field(x, t)``; the states, the first included."""
    scheduler.set_timesteps(steps or len(scheduler.fits[0]["weights"]))
    scheduler.set_begin_index(begin)
    states = [x]
    for timestep in scheduler.timesteps[begin:]:
        t = 1 - float(timestep) / 1000
        states.append(scheduler.step(-field(states[-1], t), timestep, states[-1], return_dict=False)[0])
    return states


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_weights_integrate_polynomials_exactly(order):
    t = np.sort(np.random.default_rng(0).random(6)).tolist()
    weights = adams_bashforth(t, 4, order)
    for power in range(order):
        exact = (t[5] ** (power + 1) - t[4] ** (power + 1)) / (power + 1)
        assert (t[5] - t[4]) * sum(c * t[4 - j] ** power for j, c in enumerate(weights)) == pytest.approx(exact, abs=1e-12)


def test_two_velocities_have_the_weights_of_the_textbook():
    r = (1.0 - 0.6) / (0.6 - 0.35)
    assert adams_bashforth(TIMES, 3) == pytest.approx([1 + r / 2, -r / 2])


def test_a_constant_field_is_followed_exactly():
    v = noise(2, 3, 4)
    assert torch.allclose(run(multistep(TIMES), lambda x, t: v, torch.zeros_like(v))[-1], v, atol=1e-6)


def test_order_two_on_an_uneven_grid():
    errors = []
    for n in (16, 32, 64):
        grid = (np.linspace(0, 1, n + 1) ** 1.5).tolist()
        end = run(multistep(grid), lambda x, t: -2 * x, torch.ones(1, 1, dtype=torch.float64))[-1]
        errors.append(abs(float(end) - np.exp(-2)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.2)


def test_steps_are_the_sums_that_the_fit_says():
    x, scheduler = noise(2, 4, 3), KTSFittedFlowMatchScheduler(fits=[FIT])
    states = run(scheduler, lambda x, t: torch.sin(3 * x + t), x)
    sigmas, velocities, expected = (1 - torch.tensor(TIMES, dtype=torch.float64)).float(), [], x
    for i, row in enumerate(ROWS):
        velocities.insert(0, -torch.sin(3 * expected + (1 - float(scheduler.timesteps[i]) / 1000)))
        h = float(sigmas[i + 1]) - float(sigmas[i])
        expected = expected + sum(c * h * v for c, v in zip(row, velocities, strict=False))
        torch.testing.assert_close(states[i + 1], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("begin", [1, 2, 3])
def test_a_late_start_takes_the_rest_of_the_grid_with_the_velocities_there_are(begin):
    x, scheduler = noise(1, 5), KTSFittedFlowMatchScheduler(fits=[FIT])
    states = run(scheduler, lambda x, t: -x, x, begin=begin)
    euler = x + (TIMES[begin + 1] - TIMES[begin]) * -x
    torch.testing.assert_close(states[1], euler)
    if begin == 1:  # the third step was fitted with three velocities, of which there are two
        a, b = adams_bashforth(TIMES, 2)
        torch.testing.assert_close(states[2], euler + (TIMES[3] - TIMES[2]) * (a * -euler + b * -x))
        h = TIMES[4] - TIMES[3]  # the fourth with two, which there are
        torch.testing.assert_close(states[3], states[2] + h * (1.2 * -states[2] - 0.3 * -states[1]))


def test_other_samples_without_a_new_schedule_start_a_history_of_their_own():
    scheduler = KTSFittedFlowMatchScheduler(fits=[FIT])
    run(scheduler, lambda x, t: -x, noise(1, 5))
    scheduler.set_timesteps(4)
    scheduler.step(noise(1, 5), scheduler.timesteps[0], noise(1, 5))
    x, v = noise(3, 5), noise(3, 5, seed=1)
    after = scheduler.step(v, scheduler.timesteps[1], x, return_dict=False)[0]
    torch.testing.assert_close(after, x - 0.25 * v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_velocities_are_summed_wide_and_rounded_once(dtype):
    scheduler = KTSFittedFlowMatchScheduler(fits=[FIT])
    scheduler.set_timesteps(4)
    xs, vs = [noise(2, 64, seed=i, dtype=dtype) for i in (0, 1)], [noise(2, 64, seed=i, dtype=dtype) for i in (2, 3)]
    for x, v, timestep in zip(xs, vs, scheduler.timesteps, strict=False):
        after = scheduler.step(v, timestep, x, return_dict=False)[0]
    h = float(scheduler.sigmas[2]) - float(scheduler.sigmas[1])
    exact = xs[1].double() + h * (1.6 * vs[1].double() - 0.65 * vs[0].double())
    assert after.dtype == dtype
    assert (after.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    assert torch.equal(after, exact.float().to(dtype)) or ((after - exact.to(dtype)).abs() > 0).float().mean() < 0.02


def test_only_the_velocities_that_later_steps_need_are_kept():
    scheduler = KTSFittedFlowMatchScheduler(fits=[FIT])
    scheduler.set_timesteps(4)
    x, kept = noise(1, 7, 3), []
    for timestep in scheduler.timesteps:
        scheduler.step(noise(1, 7, 3), timestep, x)
        held = [value for value in vars(scheduler).values() if isinstance(value, list)]
        kept.append(sum(isinstance(item, torch.Tensor) and item.shape == x.shape for value in held for item in value))
    assert kept == [1, 2, 1, 0]


def test_a_velocity_that_the_network_writes_over_is_kept_as_it_was():
    def last(overwrite):
        scheduler, x = KTSFittedFlowMatchScheduler(fits=[FIT]), noise(2, 6)
        scheduler.set_timesteps(4)
        buffer = torch.empty_like(x)
        for i, timestep in enumerate(scheduler.timesteps):
            v = noise(2, 6, seed=i)
            x = scheduler.step(buffer.copy_(v) if overwrite else v, timestep, x, return_dict=False)[0]
        return x

    assert torch.equal(last(True), last(False))


def test_energies_are_trapezoidal_sums_and_converge_at_order_two():
    exact = 0.5 * (1 - np.exp(-4))  # 1/2 int (2 exp(-2 t))^2 dt
    errors = []
    for n in (20, 40):
        scheduler = multistep((np.linspace(0, 1, n + 1) ** 1.5).tolist())
        run(scheduler, lambda x, t: -2 * x, torch.ones(1, 1, dtype=torch.float64))
        trace = scheduler.kpe
        assert trace.quadrature == "trapezoid" and torch.equal(trace.gains, torch.ones(n, dtype=torch.float64))
        errors.append(abs(float(trace.path_energy.total) - exact))
    assert errors[1] < errors[0] / 3
    v = noise(2, 5)
    scheduler = KTSFittedFlowMatchScheduler(fits=[FIT])
    run(scheduler, lambda x, t: v, v)
    torch.testing.assert_close(scheduler.kpe.path_energy.total, 0.5 * v.square().sum(1))


# --- schedules


def test_of_sigmas_and_timesteps_only_the_number_counts():
    scheduler = KTSFittedFlowMatchScheduler(fits=[FIT], shift=3.0)
    expected = torch.tensor([1.0, 0.9, 0.65, 0.4, 0.0])
    for given in ({"num_inference_steps": 4}, {"sigmas": [1.0, 0.5, 0.3, 0.1]}, {"timesteps": [900, 700, 500, 100]}):
        scheduler.set_timesteps(**given)
        assert torch.equal(scheduler.sigmas, expected) and torch.equal(scheduler.timesteps, 1000 * expected[:-1])


def test_models_whose_levels_count_upwards():
    up, down = KTSFittedFlowMatchScheduler(fits=[FIT], invert_sigmas=True), KTSFittedFlowMatchScheduler(fits=[FIT])
    x, v = noise(1, 4), noise(1, 4, seed=1)
    for scheduler in (up, down):
        scheduler.set_timesteps(4)
    assert torch.equal(up.sigmas, torch.tensor(TIMES))
    torch.testing.assert_close(up.step(v, up.timesteps[0], x)[0], down.step(-v, down.timesteps[0], x)[0])


def test_another_resolution_than_fitted_warns():
    scheduler = KTSFittedFlowMatchScheduler(fits=[FIT | {"mu": 0.8}], use_dynamic_shifting=True)
    with pytest.warns(UserWarning, match=r"mu=1\.1, the fit was made at mu=0\.8"):
        scheduler.set_timesteps(4, mu=1.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.set_timesteps(4, mu=0.8)
        scheduler.set_timesteps(4)


# --- in pipelines


def test_pipelines_of_all_kinds_run_it(tmp_path):
    for name, build in {"sd3": tiny_sd3, "flux": tiny_flux, "wan": tiny_wan}.items():
        pipe = KPEMonitorPipeline.from_pipe(build())
        pipe.scheduler = KTSFittedFlowMatchScheduler.from_config(pipe.scheduler.config, fits=[FIT])
        pipe(**call_kwargs(name))
        assert pipe.kpe.power.shape[1] == 4 and (pipe.kpe.nonfinite < 0).all(), name
        torch.testing.assert_close(pipe.kpe.t, torch.tensor(TIMES, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength, first", [(0.75, 1), (0.5, 2)])
def test_image_to_image_takes_the_rest_of_the_grid(strength, first):
    pipe = tiny_sd3_img2img()
    pipe.scheduler = KTSFittedFlowMatchScheduler.from_config(pipe.scheduler.config, fits=[FIT])
    pipe(**call_kwargs("sd3_img2img", strength=strength))
    torch.testing.assert_close(pipe.scheduler.kpe.t, torch.tensor(TIMES[first:], dtype=torch.float64), rtol=0, atol=1e-6)


def test_it_comes_back_from_a_folder_and_draws_the_same_bits(tmp_path):
    pipe = TINY["sd3"]()
    pipe.scheduler = KTSFittedFlowMatchScheduler.from_config(pipe.scheduler.config, fits=[FIT])
    images = pipe(**call_kwargs("sd3")).images
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    again = KTSFittedFlowMatchScheduler.from_pretrained(tmp_path / "scheduler")
    assert again.fits[0]["weights"] == ROWS and isinstance(again, SchedulerMixin)
    pipe.scheduler = again
    assert torch.equal(pipe(**call_kwargs("sd3")).images, images)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is KTSFittedFlowMatchScheduler
    assert torch.equal(loaded(**call_kwargs("sd3")).images, images)


# --- refusals


def test_a_number_of_steps_without_a_fit_is_refused_with_those_there_are():
    two = {"flow_times": [0, 0.4, 1], "weights": [[1], [1.5, -0.5]]}
    with pytest.raises(ValueError, match="num_inference_steps=8; use 2 or 4, or fit another"):
        KTSFittedFlowMatchScheduler(fits=[FIT, two]).set_timesteps(8)
    with pytest.raises(ValueError, match="num_inference_steps=8; use 4, or fit"):
        KTSFittedFlowMatchScheduler(fits=[FIT]).set_timesteps(sigmas=[1.0] * 8)
    with pytest.raises(ValueError, match="has no fits"):
        KTSFittedFlowMatchScheduler().set_timesteps(8)
    with pytest.raises(ValueError, match="nothing to go by"):
        KTSFittedFlowMatchScheduler(fits=[FIT]).set_timesteps()
    with pytest.raises(ValueError, match="go up to 80"):
        KTSFittedFlowMatchScheduler(fits=[FIT]).set_timesteps(sigmas=[80.0, 10.0, 1.0, 0.1])


@pytest.mark.parametrize(
    "fit, message",
    [
        ({"weights": [[1]]}, "give flow_times and weights"),
        ([1, 2], "give flow_times and weights"),
        ({"flow_times": [0, 1], "weights": []}, "2 flow times for 0 steps"),
        ({"flow_times": [0, 1, 1], "weights": [[1], [1]]}, "increasing numbers"),
        ({"flow_times": [0, float("nan")], "weights": [[1]]}, "increasing numbers"),
        ({"flow_times": [0, 1.5], "weights": [[1]]}, "increasing numbers"),
        ({"flow_times": [0, 1], "weights": [[1, 2]]}, "step 0 of a fit has the weights"),
        ({"flow_times": [0, 1], "weights": [["a"]]}, "step 0 of a fit has the weights"),
        ({"flow_times": [0, 1], "weights": [[1]], "mu": "x"}, "mu='x'"),
    ],
)
def test_malformed_fits_are_refused(fit, message):
    with pytest.raises(ValueError, match=message):
        KTSFittedFlowMatchScheduler(fits=[fit])
    with pytest.raises(ValueError, match="two fits for 4 steps"):
        KTSFittedFlowMatchScheduler(fits=[FIT, FIT])


@pytest.mark.parametrize(
    "setting", [{"alpha_0": 0.01}, {"beta_0": 0.01}, {"touchdown": 0.7}, {"gain": [1.0] * 4}, {"stochastic_sampling": True}]
)
def test_shaping_and_noise_are_refused(setting):
    with pytest.raises(ValueError, match=r"takes no shaping|is for the ODE only"):
        KTSFittedFlowMatchScheduler(fits=[FIT], **setting)
    with pytest.raises(ValueError, match="takes no shaping"):
        KTSFittedFlowMatchScheduler.from_config(KTSFlowMatchScheduler(alpha_0=0.02).config, fits=[FIT])


def test_tokens_with_times_of_their_own_are_refused():
    scheduler, x = KTSFittedFlowMatchScheduler(fits=[FIT]), noise(1, 4, 2)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="per_token_timesteps"):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=torch.zeros(1, 4))
