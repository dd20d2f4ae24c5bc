"""Net displacement and excess energy: oracles, and what runs of every kind record."""

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_pipelines import call_kwargs, tiny_sd3

from diffusers_kts import (
    KPECallback,
    KPEMonitorPipeline,
    KPETrace,
    KTSDPMSolverMultistepScheduler,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
)

OFF, SHAPED = {"alpha_0": 0.0, "beta_0": 0.0}, {"alpha_0": 0.1, "beta_0": 0.02}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
S = 0.5  # deviation of the Gaussian data


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def straight(x, t):
    """A constant field."""
    return torch.ones_like(x) * torch.arange(1.0, 1 + x[0].numel()).view(x.shape[1:])


def gaussian(x, t):
    """``dx/dsigma`` of data N(0, s^2 I), whose flow map is ``x_t = x_0 sqrt(t^2 s^2 + (1 - t)^2)``."""
    return -x * (t * S**2 - (1 - t)) / (t**2 * S**2 + (1 - t) ** 2)


def run(scheduler, field, x, steps=20, begin=0):
    scheduler.record_displacement = True
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(begin)
    for timestep in scheduler.timesteps[begin:]:
        x = scheduler.step(field(x, 1 - timestep / 1000), timestep, x, return_dict=False)[0]
    return x, scheduler.kpe


@pytest.mark.parametrize("begin", [0, 7])
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (KTSFlowMatchScheduler, {"shift": 3.0}),
        (KTSFlowMatchScheduler, {"touchdown": 0.7}),
        (KTSFlowMatchHeunScheduler, {}),
        (KTSDPMSolverMultistepScheduler, FLOW),
    ],
)
def test_a_straight_even_path_has_no_excess(cls, settings, begin):
    x = torch.zeros(3, 2, 4)
    trace = run(cls(**OFF, **settings), straight, x, begin=begin)[1]
    length = (1 - trace.t_start) * straight(x, 0).flatten(1).norm(dim=1)
    torch.testing.assert_close(trace.displacement, length, rtol=1e-5, atol=0)
    assert (trace.excess.abs() < 1e-5 * trace.path_energy.total).all()


def test_shaping_a_straight_path_costs_the_variance_of_the_gain():
    trace = run(KTSFlowMatchScheduler(**SHAPED), straight, torch.zeros(2, 2, 4))[1]
    eta, dt = trace.gains, trace.weights
    variance = (eta**2 * dt).sum() - (eta * dt).sum() ** 2
    torch.testing.assert_close(trace.excess, (variance * trace.power[:, 0] / 2).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("cls", [KTSFlowMatchScheduler, KTSFlowMatchHeunScheduler])
def test_the_excess_of_gaussian_data_is_that_of_its_closed_form_to_first_order(cls):
    x = randn(4, 16)
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    speed = (t * S**2 - (1 - t)) / (t**2 * S**2 + (1 - t) ** 2).sqrt()  # of a unit of noise
    exact = x.double().square().sum(1) / 2 * (torch.trapezoid(speed**2, t) - (S - 1) ** 2)
    errors = []
    for steps in (50, 100, 200):
        trace = run(cls(**OFF), gaussian, x, steps)[1]
        errors.append(float(((trace.excess - exact) / exact).abs().mean()))
    assert errors[2] < 0.02
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 1.7 < coarse / fine < 2.3


@pytest.mark.parametrize("settings", [SHAPED, OFF | {"touchdown": 0.6}, {"alpha_0": 0.3, "beta_0": 0.05}])
def test_the_displacement_is_how_far_euler_has_moved_and_the_excess_is_never_negative(settings):
    x = randn(4, 2, 8)
    end, trace = run(KTSFlowMatchScheduler(**settings), lambda x, t: torch.sin(5 * x + t), x)
    torch.testing.assert_close(trace.displacement, (end - x).flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    straight = trace.displacement**2 / 2 / trace.weights.sum().float()
    torch.testing.assert_close(trace.excess, trace.path_energy.total - straight, rtol=1e-4, atol=1e-5)
    assert (trace.excess > 0).all() and torch.equal(trace.excess_per_dim, trace.excess / 16)


def test_what_a_pipeline_pastes_between_steps_is_not_the_samplers_motion():
    ours, x = KTSFlowMatchScheduler(**OFF), torch.zeros(2, 8)
    ours.record_displacement = True
    ours.set_timesteps(4)
    for timestep in ours.timesteps:
        x = ours.step(straight(x, 0), timestep, randn(2, 8, seed=int(timestep)), return_dict=False)[0]
    assert (ours.kpe.excess.abs() < 1e-5 * ours.kpe.path_energy.total).all()


def test_runs_that_go_back_count_the_time_of_all_their_steps():
    ours, x = KTSFlowMatchScheduler(**OFF), torch.zeros(2, 8)
    ours.record_displacement = True
    ours.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    for index in (0, 1, 0, 1, 2, 3):
        ours._step_index = index
        ours.step(straight(x, 0), ours.timesteps[index], x)
    assert ours.kpe.weights.sum() == 1.5
    torch.testing.assert_close(ours.kpe.displacement, 1.5 * straight(x, 0).norm(dim=1))
    assert (ours.kpe.excess.abs() < 1e-5 * ours.kpe.path_energy.total).all()


def test_tokens_move_by_their_own_intervals():
    ours, v = KTSFlowMatchScheduler(**SHAPED), randn(2, 3, 5)
    ours.record_displacement = True
    ours.set_timesteps(4)
    x, token_timesteps = torch.zeros(2, 3, 5), torch.tensor([[1000.0, 700.0, 0.0]] * 2)
    end = ours.step(v, ours.timesteps[0], x, per_token_timesteps=token_timesteps, return_dict=False)[0]
    torch.testing.assert_close(ours.kpe.displacement, (end - x).flatten(1).norm(dim=1))
    assert (ours.kpe.excess > 0).all()  # the third token rests


def test_a_record_without_displacement_says_how_to_get_one(tmp_path):
    x = randn(3, 2, 4)
    ours = KTSFlowMatchScheduler()
    trace = run(ours, gaussian, x)[1]
    twin = copy.deepcopy(ours)
    assert torch.equal(twin.kpe.displacement, trace.displacement)
    trace.save(tmp_path / "kpe.safetensors")
    loaded = KPETrace.load(tmp_path / "kpe.safetensors")
    assert torch.equal(loaded.excess, trace.excess)
    joined = KPETrace.cat([trace, loaded])
    assert torch.equal(joined.excess, torch.cat([trace.excess] * 2))
    assert joined.to_pandas()["excess"].tolist() == joined.excess.tolist() and joined.to_dict()["displacement"]
    assert "(excess" in trace.plot().get_legend().get_texts()[0].get_text()
    ours.record_displacement = False  # from now on none
    ours.set_timesteps(2)
    ours.step(x, ours.timesteps[0], x)
    assert ours.kpe.displacement is None and "excess" not in ours.kpe.to_dict()
    with pytest.raises(ValueError, match="record_displacement = True"):
        _ = ours.kpe.excess
    with pytest.raises(ValueError, match="differ"):
        KPETrace.cat([trace, ours.kpe])
    with pytest.raises(ValueError, match="for each of 3 samples"):
        KPETrace(trace.power, trace.sigmas, trace.t, trace.gains, 0.6, trace.d, displacement=torch.ones(2))


def test_the_quadrature_can_be_changed():
    trace = run(KTSFlowMatchHeunScheduler(**OFF), gaussian, randn(2, 8), 10)[1]
    left = trace.with_quadrature("left")
    assert left.quadrature == "left" and left.with_quadrature("trapezoid").path_energy.total.equal(trace.path_energy.total)
    assert left.weights[1::2].eq(0).all()  # correctors end where they begin
    torch.testing.assert_close(left.path_energy.total, (trace.power[:, ::2].double() @ left.weights[::2]).float() / 2)
    with pytest.raises(ValueError, match="simpson"):
        trace.with_quadrature("simpson")


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, KTSFlowMatchScheduler])
def test_monitored_calls_record_the_displacement_and_leave_the_scheduler_as_it_was(scheduler):
    pipe = tiny_sd3()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    monitor(**call_kwargs("sd3"))
    energy = KPECallback(pipe)
    pipe(**call_kwargs("sd3"), callback_on_step_end=energy)
    assert (monitor.kpe.excess > 0).all() and torch.equal(energy.kpe.excess, monitor.kpe.excess)
    assert all(run.moved is None for recorder in energy.session.recorders for run in recorder.runs)
    assert not getattr(pipe.scheduler, "record_displacement", False)
