"""What pipelines do to schedulers beside one plain run: every solver keeps its meaning, or refuses."""

import copy
import warnings

import pytest
import torch
from diffusers import FluxInpaintPipeline
from shaped_reference import field, noise, run
from tiny_pipelines import _build, _flux_components, call_kwargs, tiny_sd3_img2img

from diffusers_kts import (
    PRESETS,
    KPEMonitorPipeline,
    KTSDDIMScheduler,
    KTSDPMSolverMultistepScheduler,
    KTSEulerDiscreteScheduler,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
    KTSUniPCMultistepScheduler,
)

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW_CLASSES = {
    KTSFlowMatchScheduler: {},
    KTSFlowMatchHeunScheduler: {},
    KTSUniPCMultistepScheduler: FLOW,
    KTSDPMSolverMultistepScheduler: FLOW,
}
CLASSES = FLOW_CLASSES | {KTSEulerDiscreteScheduler: {}, KTSDDIMScheduler: {"clip_sample": False}}
SHAPED = {"alpha_0": 0.3, "beta_0": 0.04}


def sample(scheduler, x, seed=0, begin=0):
    """A run of a sampler of any kind, on some smooth network."""
    for i, timestep in enumerate(scheduler.timesteps[begin:]):
        seen = scheduler.scale_model_input(x, timestep)
        v = torch.sin(2 * seen + i + seed)
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("cls", CLASSES)
def test_a_second_run_starts_afresh(cls):
    scheduler = cls(**CLASSES[cls], **SHAPED)
    ends, energies = [], []
    for steps in (5, 9, 5):
        scheduler.set_timesteps(steps)
        ends.append(sample(scheduler, noise()))
        energies.append(scheduler.kpe)
    assert torch.equal(ends[0], ends[2]) and not torch.equal(ends[0], ends[1])
    assert torch.equal(energies[0].power, energies[2].power)
    assert len(energies[1].gains) == len(scheduler.gains) + 4 * (2 if cls is KTSFlowMatchHeunScheduler else 1)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_copy_steps_a_second_latent_as_a_scheduler_of_its_own_would(cls):
    """Audio beside video; copied after set_timesteps, stepped in turn, of another shape."""
    scheduler = cls(**CLASSES[cls], **SHAPED)
    scheduler.set_timesteps(6)
    alone = sample(copy.deepcopy(scheduler), noise()), sample(copy.deepcopy(scheduler), noise(1)[:, :2], seed=3)
    twin, x, y = copy.deepcopy(scheduler), noise(), noise(1)[:, :2]
    for i, timestep in enumerate(scheduler.timesteps):
        seen_x, seen_y = scheduler.scale_model_input(x, timestep), twin.scale_model_input(y, timestep)
        x = scheduler.step(torch.sin(2 * seen_x + i), timestep, x, return_dict=False)[0]
        y = twin.step(torch.sin(2 * seen_y + i + 3), timestep, y, return_dict=False)[0]
    assert torch.equal(x, alone[0]) and torch.equal(y, alone[1])
    assert scheduler.kpe.d == 20 and twin.kpe.d == 10


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("steps", range(1, 9))
def test_distilled_schedules(cls, steps):
    """1 to 8 steps: finite, as many calls as asked for, each with the gain of its own flow time."""
    for touchdown in (None, 0.999):
        scheduler = cls(**CLASSES[cls], **SHAPED, touchdown=touchdown)
        scheduler.set_timesteps(steps)
        end = sample(scheduler, noise())
        assert torch.isfinite(end).all() and torch.isfinite(scheduler.kpe.path_energy.total).all()
        assert len(scheduler.timesteps) == (2 * steps - 1 if cls is KTSFlowMatchHeunScheduler else steps)
        for row in scheduler.schedule_table():
            assert row["eta"] == (1 if row["phase"] == "touchdown" else pytest.approx(scheduler.gain(row["t"]), abs=1e-6))


@pytest.mark.parametrize("cls", FLOW_CLASSES)
def test_slices_of_the_latents_are_stepped_as_they_are(cls):
    """Image-to-video pipelines step ``latents[:, :, 1:]`` only; Kandinsky's latents are channel-last."""
    whole, part = (cls(**FLOW_CLASSES[cls], **SHAPED) for _ in range(2))
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    ends = []
    for scheduler, latents in ((whole, x), (part, x[:, :, 1:])):
        scheduler.set_timesteps(5)
        ends.append(run(scheduler, latents))
    torch.testing.assert_close(ends[0][:, :, 1:], ends[1], atol=1e-6, rtol=1e-5)
    assert part.kpe.d == 3 * 3 * 5 * 6


def test_models_that_count_upwards_take_the_same_path():
    """Mochi: sigma is the flow time, the network gives ``dx/dt``."""
    down = KTSFlowMatchScheduler(**SHAPED)
    up = KTSFlowMatchScheduler(invert_sigmas=True, **SHAPED)
    heun_down, heun_up = KTSFlowMatchHeunScheduler(**SHAPED), KTSFlowMatchHeunScheduler(invert_sigmas=True, **SHAPED)
    for one, other in ((down, up), (heun_down, heun_up)):
        ends = []
        for scheduler, sign in ((one, 1), (other, -1)):
            scheduler.set_timesteps(sigmas=[1 - i / 12 for i in range(12)])
            x = noise()
            for i, timestep in enumerate(scheduler.timesteps):
                t = scheduler.schedule_table()[i]["t"]
                x = scheduler.step(sign * field(x, t), timestep, x)[0]
            ends.append(x)
        torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.kpe.path_energy.early, other.kpe.path_energy.early, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.gains, other.gains, atol=1e-6, rtol=0)


def test_sigmas_read_back_and_set_again_stay_what_they_are():
    """SanaWM's refiner sets, for every block, the sigmas it reads from the scheduler."""
    scheduler = KTSFlowMatchScheduler(**SHAPED)
    scheduler.set_timesteps(6)
    first, gains = scheduler.sigmas.clone(), scheduler.gains
    for _ in range(4):
        scheduler.set_timesteps(sigmas=scheduler.sigmas[:-1].tolist())
    torch.testing.assert_close(scheduler.sigmas, first, atol=1e-6, rtol=0)
    torch.testing.assert_close(scheduler.gains, gains, atol=1e-6, rtol=0)


def test_tokens_past_the_touchdown_go_to_their_data_estimate():
    """LTX conditions: every token has a noise level of its own; clean ones do not move."""
    scheduler = KTSFlowMatchScheduler(**SHAPED, touchdown=0.7)
    scheduler.set_timesteps(8)
    x, a = noise()[..., :4].float().transpose(1, 2), 0.25  # (B, S, C)
    times = torch.tensor([[0.0, 100.0, 250.0, 600.0]]).expand(3, -1)
    x = x[:, :4]
    v = (x - a) / (times / 1000).clamp(min=1e-9)[..., None]
    moved = scheduler.step(-v, scheduler.timesteps[2], x, per_token_timesteps=times)[0]
    torch.testing.assert_close(moved[:, 0], x[:, 0])
    torch.testing.assert_close(moved[:, 1:3], torch.full_like(moved[:, 1:3], a), atol=1e-5, rtol=0)
    assert (moved[:, 3] - a).abs().max() > 0.1


@pytest.mark.parametrize("beta_0", [0.0, 0.01, 0.05])
def test_a_late_start_says_how_much_noise_the_landing_leaves(beta_0):
    pipe = tiny_sd3_img2img()
    pipe.scheduler = ours = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.0, beta_0=beta_0)
    call = call_kwargs("sd3_img2img", strength=0.3, num_inference_steps=20)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pipe(**call)
    told = [str(warning.message) for warning in told if "stays in the image as noise" in str(warning.message)]
    begin, dt = 14, -ours.sigmas.double().diff()
    moved = float((ours.gains * dt)[begin:].sum() / dt[begin:].sum())
    assert ours.net_displacement() == pytest.approx(moved) and ours.begin_index == begin
    assert ours.net_displacement(0) >= ours.net_displacement()
    assert len(told) == (moved < 0.95)
    if told:
        assert f"begins at step 14 of 20 and moves {moved:.1%}" in told[0] and "touchdown" in told[0]


def test_touchdown_of_a_late_start_ends_on_the_data_estimate():
    """A strength counts steps of the cut schedule; what is run ends without residual noise."""
    pipe = tiny_sd3_img2img()
    shaped = {"alpha_0": 0.0, "beta_0": 0.05, "touchdown": 0.8}
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **shaped)
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    monitor(**call_kwargs("sd3_img2img", strength=0.5, num_inference_steps=20))
    ours, trace = pipe.scheduler, monitor.kpe
    assert trace.late_start and float(trace.t[-2]) == pytest.approx(0.8, abs=1e-6) and float(trace.t[-1]) == 1
    assert trace.gains[-1] == 1 and len(ours.timesteps) < 20
    assert ours.net_displacement() > 0.97


def test_inpainting_keeps_the_known_region_and_shapes_the_rest():
    pipe = _build(FluxInpaintPipeline, _flux_components, 0)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    g = torch.Generator().manual_seed(1)
    call = {"image": torch.rand(1, 3, 32, 32, generator=g), "mask_image": mask, "strength": 1.0}

    def halves():
        tokens = pipe(**call_kwargs("flux", **call))[0].unflatten(1, (8, 8))
        return tokens[:, :, :4], tokens[:, :, 4:]

    plain = halves()
    for cls in (KTSFlowMatchScheduler, KTSFlowMatchHeunScheduler):
        pipe.scheduler = cls.from_config(pipe.scheduler.config, **SHAPED)
        known, drawn = halves()
        torch.testing.assert_close(known, plain[0], atol=1e-6, rtol=1e-5)
        assert torch.isfinite(drawn).all() and not torch.allclose(drawn, plain[1], atol=1e-3)
        assert torch.isfinite(pipe.scheduler.kpe.path_energy.total).all()
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["off"])
    assert all(torch.equal(ours, stock) for ours, stock in zip(halves(), plain, strict=True))
