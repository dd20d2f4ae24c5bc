"""The memorization score of a record: the movement of the data estimate, recorded on request, at the cost of one latent."""

import copy

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

from diffusers_kts import (
    PRESETS,
    ClassConditionalFlowPipeline,
    KPEMonitorPipeline,
    KPETrace,
    KTSFlowMatchScheduler,
    embedded_model,
)


def field(x, t):
    return torch.sin(3 * x) * (2 - t)


def run(x, n=20, record_turn=True, scheduler=None, **shaping):
    scheduler = scheduler or KTSFlowMatchScheduler(**(PRESETS["off"] | shaping))
    scheduler.record_turn = record_turn
    scheduler.set_timesteps(sigmas=[1 - i / n for i in range(n)])
    estimates = []
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        v = field(x, 1 - sigma.double())
        estimates.append(x - sigma.double() * v)
        x = scheduler.step(v, timestep, x)[0]
    return x, scheduler.kpe, estimates


@pytest.fixture(scope="module")
def noise():
    return torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_it_is_how_far_the_data_estimate_of_euler_steps_moves(noise):
    _, trace, estimates = run(noise)
    moved = torch.stack([(b - a).flatten(1).norm(dim=1) for a, b in zip(estimates, estimates[1:], strict=False)], 1)
    torch.testing.assert_close(trace.estimate_change(), moved.sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(trace.estimate_change(0.2, 0.5), moved[:, 3:9].sum(1), rtol=1e-6, atol=0)
    # .5 is no longer early, .9 is late; the change at step i is that from i - 1
    torch.testing.assert_close(trace.settling, (moved[:, :9].sum(1) / moved[:, 17:].sum(1)).log(), rtol=1e-6, atol=0)


def test_it_is_recorded_on_request_and_changes_no_sample(noise):
    plain, trace, _ = run(noise, record_turn=False, alpha_0=0.1)
    recorded, with_turn, _ = run(noise, alpha_0=0.1)
    assert torch.equal(plain, recorded) and torch.equal(trace.power, with_turn.power)
    assert trace.turn is None and "settling" not in trace.to_dict()
    with pytest.raises(ValueError, match="record_turn = True"):
        _ = trace.settling
    with pytest.raises(ValueError, match="same shape"):
        KPETrace(trace.power, trace.sigmas, trace.t, trace.gains, 0.6, 6, turn=trace.power[:, 1:])


def test_a_sample_scores_the_same_alone(noise):
    together = run(noise)[1].settling
    alone = torch.cat([run(x)[1].settling for x in noise.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


def test_half_precision_turns_are_taken_in_float32():
    scheduler = KTSFlowMatchScheduler()
    scheduler.record_turn = True
    scheduler.set_timesteps(2)
    for timestep, speed in zip(scheduler.timesteps, (300.0, -300.0), strict=True):
        v = torch.full((1, 4096), speed, dtype=torch.float16)  # the square of their difference overflows
        scheduler.step(v, timestep, v)
    assert scheduler.kpe.turn.tolist() == [[0.0, pytest.approx(600 * 64)]]


def test_no_velocity_is_kept_once_the_run_is_over_and_copies_go_on_alone(noise):
    scheduler = KTSFlowMatchScheduler()
    scheduler.record_turn = True
    scheduler.set_timesteps(3)
    x = noise
    x = scheduler.step(field(x, 0), scheduler.timesteps[0], x)[0]
    twin = copy.deepcopy(scheduler)
    for other in (scheduler, twin):
        y = x
        for timestep in scheduler.timesteps[1:]:
            assert other.recorder.runs[-1].last_velocity is not None
            y = other.step(field(y, 0.5), timestep, y)[0]
        assert other.recorder.runs[-1].last_velocity is None
    assert twin.record_turn and torch.equal(twin.kpe.turn, scheduler.kpe.turn)
    scheduler.set_timesteps(3)
    scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(3)  # a run that was left early
    assert all(run.last_velocity is None for run in scheduler.recorder.runs)


def test_a_velocity_that_its_owner_writes_over_is_not_lost():
    scheduler = KTSFlowMatchScheduler()
    scheduler.record_turn = True
    scheduler.set_timesteps(3)
    v = torch.empty(2, 4)
    for timestep, speed in zip(scheduler.timesteps, (1.0, 2.0, 4.0), strict=True):
        scheduler.step(v.fill_(speed), timestep, torch.zeros(2, 4))
    assert scheduler.kpe.turn.tolist() == [[0.0, 2.0, 4.0]] * 2


def test_a_record_without_early_or_late_steps_has_no_score(noise):
    assert run(noise, touchdown=0.7)[1].settling.isnan().all()
    assert run(noise, touchdown=0.7)[1].estimate_change(0, 0.5).gt(0).all()
    scheduler = KTSFlowMatchScheduler()
    scheduler.set_timesteps(2)
    scheduler.step(noise, scheduler.timesteps[0], noise)
    scheduler.record_turn = True  # in the middle of a run: from the next on
    scheduler.step(noise, scheduler.timesteps[1], noise)
    assert scheduler.kpe.turn is None


def test_records_come_back_and_join(noise, tmp_path):
    trace = run(noise)[1]
    trace.save(tmp_path / "trace")
    assert torch.equal(KPETrace.load(tmp_path / "trace").turn, trace.turn)
    joined = KPETrace.cat([run(part)[1] for part in noise.split(2)])
    torch.testing.assert_close(joined.settling, trace.settling, rtol=1e-12, atol=0)
    assert trace.to_pandas()["settling"].tolist() == trace.settling.tolist()
    with pytest.raises(ValueError, match="differ"):
        KPETrace.cat([trace, run(noise, record_turn=False)[1]])


@pytest.mark.parametrize("solver", [None, FlowMatchHeunDiscreteScheduler, KTSFlowMatchScheduler])
def test_the_monitor_records_it_for_any_solver(solver):
    plain = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    plain.set_progress_bar_config(disable=True)
    if solver is not None:
        plain.scheduler = solver()
    pipe = KPEMonitorPipeline.from_pipe(plain)
    call = {"num_inference_steps": 10, "output_type": "pt"}
    unrecorded = pipe([3, 8], generator=torch.Generator().manual_seed(0), **call).images
    assert pipe.kpe.turn is None
    pipe.record_turn = True
    assert torch.equal(pipe([3, 8], generator=torch.Generator().manual_seed(0), **call).images, unrecorded)
    assert pipe.kpe.settling.isfinite().all()
    assert not getattr(plain.scheduler, "record_turn", False)  # as it was before the call
