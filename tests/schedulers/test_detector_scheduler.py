"""KTSDetectorFlowMatchScheduler: who is flagged touches down, the others go on, each as if drawn without the other."""

import copy
import dataclasses

import pytest
import torch
from test_adaptive import NoWaiting, field, noise
from tiny_pipelines import call_kwargs, tiny_sd3_img2img

from diffusers_kts import (
    ClassConditionalFlowPipeline,
    KPEMonitorPipeline,
    KPETrace,
    KTSDetectorFlowMatchScheduler,
    KTSFlowMatchScheduler,
    embedded_model,
)
from diffusers_kts.memorization import MemorizationDetector, fit_detector

STEPS = 10
OFF = {"alpha_0": 0.0, "beta_0": 0.0}


def run(x, scheduler, v=field, steps=STEPS, sigmas=None):
    scheduler.set_timesteps(sigmas=sigmas or [1 - i / steps for i in range(steps)])
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(v(x, 1 - scheduler.sigmas[i].double()).to(x.dtype), timestep, x)[0]
    return x, scheduler.kpe


def plain(x, record_turn=False, **setting):
    scheduler = KTSFlowMatchScheduler(**(OFF | setting))
    scheduler.record_turn = record_turn
    return run(x, scheduler)


@pytest.fixture(scope="module")
def detector():
    """Fitted to samples of `field` that count as memorized where they begin far from 0."""
    x = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.2, 2, 200).reshape(-1, 1, 1)
    _, trace = plain(x, record_turn=True)
    distance = x.flatten(1).norm(dim=1)
    return fit_detector(trace, distance > distance.median(), [i % 10 for i in range(200)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_flagged_samples_are_those_of_a_touchdown_and_the_others_those_of_plain_sampling(detector, dtype):
    x = noise(dtype)
    untouched, record = plain(x, record_turn=True)
    touched, _ = plain(x, touchdown=0.6)
    end, trace = run(x, KTSDetectorFlowMatchScheduler(detector=detector))
    flagged = trace.flagged
    assert end.dtype == dtype and 0 < flagged.sum() < len(x)
    assert torch.equal(end[flagged], touched[flagged]) and torch.equal(end[~flagged], untouched[~flagged])
    assert not torch.equal(touched, untouched)
    probability = detector.probability(record, 0.6)
    torch.testing.assert_close(trace.memorization_probability, probability.float(), rtol=0, atol=1e-6)
    assert torch.equal(flagged, trace.memorization_probability >= 0.5)
    expected = torch.ones(STEPS, dtype=torch.float64).repeat(len(x), 1)
    expected[flagged, 6], expected[flagged, 7:] = 4, 0
    torch.testing.assert_close(trace.gains.expand(len(x), -1), expected, rtol=1e-6, atol=0)
    assert torch.equal(trace.power[:, :7], record.power[:, :7])
    one = run(x, KTSDetectorFlowMatchScheduler(detector=detector, detector_threshold=0.999999))[0]
    assert torch.equal(one, untouched)


def test_with_flag_no_bit_changes(detector):
    x = noise(torch.float32)
    for end in (0.6, 1.0):
        scheduler = KTSDetectorFlowMatchScheduler(detector=detector, on_memorized="flag", detect_at=end)
        drawn, trace = run(x, scheduler)
        untouched, record = plain(x, record_turn=True)
        assert torch.equal(drawn, untouched) and trace.flagged.any() and torch.equal(trace.gains, record.gains)
        expected = detector.probability(record, end).float()
        torch.testing.assert_close(trace.memorization_probability, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(detector.probability(trace, end).float(), expected, rtol=0, atol=0)


def test_a_sample_does_not_depend_on_its_neighbors_or_its_future(detector):
    x, scheduler = noise(), KTSDetectorFlowMatchScheduler(detector=detector)
    together, trace = run(x, scheduler)
    alone = [run(part, scheduler) for part in x.split(1)]
    assert torch.equal(together, torch.cat([end for end, _ in alone]))
    joined = KPETrace.cat([record for _, record in alone])
    assert torch.equal(joined.memorization_probability, trace.memorization_probability)
    assert torch.equal(joined.flagged, trace.flagged)
    _, other = run(x, scheduler, lambda x, t: field(x, t) * (1 if t < 0.65 else 3))
    assert torch.equal(other.memorization_probability, trace.memorization_probability)


def test_between_grid_points_the_next_one_decides_by_what_was_seen_before(detector):
    """A grid without .6: the touchdown is at the next evaluation, the record is read up to .6."""
    x, sigmas = noise(torch.float32), [1.0, 0.9, 0.75, 0.6, 0.45, 0.35, 0.2]
    scheduler = KTSFlowMatchScheduler(**OFF)
    scheduler.record_turn = True
    untouched, record = run(x, scheduler, sigmas=sigmas)
    touched, _ = run(x, KTSFlowMatchScheduler(**OFF, touchdown=0.65), sigmas=sigmas)
    other = dataclasses.replace(detector, times=record.t.double())
    end, trace = run(x, KTSDetectorFlowMatchScheduler(detector=other), sigmas=sigmas)
    assert 0 < trace.flagged.sum() < len(x)
    assert torch.equal(end, torch.where(trace.flagged[:, None, None], touched, untouched))
    late = torch.where(record.t[:-1] > 0.6, 7.0, record.turn)
    same = other.probability(dataclasses.replace(record, turn=late), 0.6).float()
    torch.testing.assert_close(trace.memorization_probability, same, rtol=0, atol=1e-6)


def test_shaping_goes_with_a_detector_that_was_fitted_with_it(detector):
    shaped = dataclasses.replace(detector, about=detector.about | {"alpha_0": 0.1, "tau_split": 0.6, "k": 3.0} | SHAPES)
    x = noise(torch.float32)
    end, trace = run(x, KTSDetectorFlowMatchScheduler(detector=shaped, alpha_0=0.1))
    untouched, _ = plain(x, alpha_0=0.1)
    touched, _ = plain(x, alpha_0=0.1, touchdown=0.6)
    assert 0 < trace.flagged.sum() < len(x)
    assert torch.equal(end, torch.where(trace.flagged[:, None, None], touched, untouched))


SHAPES = {"early_schedule": "linear", "late_schedule": "exponential"}


def test_levels_that_count_upwards_take_the_same_path(detector):
    x = noise(torch.float32)
    end, trace = run(x, KTSDetectorFlowMatchScheduler(detector=detector))
    scheduler = KTSDetectorFlowMatchScheduler(detector=detector, invert_sigmas=True)
    scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)])
    moved = x
    for i, timestep in enumerate(scheduler.timesteps):
        moved = scheduler.step(-field(moved, scheduler.sigmas[i].double()).float(), timestep, moved)[0]
    assert torch.equal(scheduler.kpe.flagged, trace.flagged)
    torch.testing.assert_close(moved, end, rtol=1e-5, atol=1e-5)


def test_no_step_waits_for_the_device(detector):
    scheduler, x = KTSDetectorFlowMatchScheduler(detector=detector), noise()
    scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)])
    scheduler.set_begin_index(0)
    with NoWaiting():
        for timestep in scheduler.timesteps:
            x = scheduler.step(torch.sin(2 * x), timestep, x)[0]
    assert scheduler.kpe.flagged.shape == (6,)


def test_copies_go_on_alone_and_a_second_run_starts_afresh(detector):
    scheduler, x = KTSDetectorFlowMatchScheduler(detector=detector), noise()
    first, second = run(x, scheduler), run(x, scheduler)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1].gains, second[1].gains)
    scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)])
    for timestep in scheduler.timesteps[:8]:  # past the decision
        x = scheduler.step(field(x, 0), timestep, x)[0]
    twin, ends = copy.deepcopy(scheduler), []
    for other in (scheduler, twin):
        y = x
        for timestep in scheduler.timesteps[8:]:
            y = other.step(field(y, 0.5), timestep, y)[0]
        ends.append(y)
    assert torch.equal(*ends) and torch.equal(scheduler.kpe.flagged, twin.kpe.flagged)


def test_pipelines_keep_the_detector_and_records_who_was_flagged(detector, tmp_path):
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    file = tmp_path / "detector.safetensors"
    pipe.scheduler.set_timesteps(STEPS)
    own = dataclasses.replace(detector, about=detector.about | {"d": 784}, times=1 - pipe.scheduler.sigmas.double())
    own.save(file)
    pipe.scheduler = KTSDetectorFlowMatchScheduler.from_config(pipe.scheduler.config, detector=file)
    file.unlink()
    call = {"num_inference_steps": STEPS, "output_type": "latent"}
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    images = monitor([3, 8, 1], generator=torch.Generator().manual_seed(0), **call).images
    trace = monitor.kpe
    trace.save(tmp_path / "trace")
    again = KPETrace.load(tmp_path / "trace")
    assert torch.equal(again.flagged, trace.flagged) and trace.to_dict()["flagged"] == trace.flagged.tolist()
    order = trace.take([2, 0])
    assert torch.equal(order.memorization_probability, trace.memorization_probability[[2, 0]])
    pipe.save_pretrained(tmp_path / "ours")
    loaded = ClassConditionalFlowPipeline.from_pretrained(tmp_path / "ours")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is KTSDetectorFlowMatchScheduler
    assert torch.equal(loaded([3, 8, 1], generator=torch.Generator().manual_seed(0), **call).images, images)
    assert torch.equal(loaded.scheduler.kpe.memorization_probability, trace.memorization_probability)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"detector_threshold": 1.0}, "detector_threshold is 1.0; give a probability above 0"),
        ({"detect_at": 0}, "detect_at is 0; give a flow time above 0"),
        ({"detect_at": 0.55}, "up to t = 0.4, 0.5, 0.6, 0.7, 0.8 or 1, not 0.55"),
        ({"detect_at": 1.0}, "nothing is left to touch down"),
        ({"on_memorized": "redraw"}, "choose one of touchdown, flag"),
        ({"alpha_0": 0.1}, "fitted with alpha_0 0.0, this run has 0.1"),
        ({"touchdown": 0.7}, "fitted with touchdown None, this run has 0.7"),
        ({"stochastic_sampling": True}, "stochastic_sampling=False"),
        ({"detector": 7}, "detector is 7; give the path"),
        ({"detector": {"ends": [1.0]}}, "this is no detector"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(detector, setting, words):
    with pytest.raises(ValueError, match=words):
        KTSDetectorFlowMatchScheduler(**{"detector": detector} | setting)


def test_another_run_is_refused_with_the_difference(detector):
    scheduler, x = KTSDetectorFlowMatchScheduler(detector=detector), torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match=r"10 steps from t = 0 to 0\.9, this run has 4 steps from t = 0 to 0\.75"):
        scheduler.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    with pytest.raises(ValueError, match="noise levels up to 1"):
        scheduler.set_timesteps(sigmas=[80.0, 9.0, 1.0])
    scheduler.set_timesteps(sigmas=[1 - i / STEPS for i in range(STEPS)])
    with pytest.raises(ValueError, match="fitted with d 6, this run has 8"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="per_token_timesteps are not supported with a detector"):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=torch.ones(1, 2))
    with pytest.raises(FileNotFoundError, match="kts audit"):
        KTSDetectorFlowMatchScheduler(detector="nowhere.safetensors")
    with pytest.raises(ValueError, match="no detector judged these samples"):
        _ = plain(noise())[1].flagged


def test_a_late_start_is_refused(detector):
    pipe = tiny_sd3_img2img()
    call = {"strength": 0.5, "num_inference_steps": STEPS}
    pipe.scheduler.set_timesteps(STEPS)
    times = 1 - pipe.scheduler.sigmas.double()
    own = dataclasses.replace(detector, times=times)
    pipe.scheduler = KTSDetectorFlowMatchScheduler.from_config(pipe.scheduler.config, detector=own)
    with pytest.raises(ValueError, match="step 5 follows 0 others: a detector reads runs that begin with noise"):
        pipe(**call_kwargs("sd3_img2img", **call))


def test_a_detector_of_another_kind_of_file_is_refused(tmp_path, detector):
    plain(noise())[1].save(tmp_path / "trace")
    with pytest.raises(ValueError, match="its format is 'diffusers-kts/kpe'"):
        MemorizationDetector.load(tmp_path / "trace")
