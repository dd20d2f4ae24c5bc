"""What pipelines do to schedulers beside one plain run: every solver keeps its meaning, or refuses."""

import copy
import pickle
import warnings

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxInpaintPipeline
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
from diffusers_kts.generate.selection import PartialSchedule

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


EDITS = {"data": lambda sigmas: sigmas.data, "numpy": lambda sigmas: sigmas.numpy(), "in place": lambda sigmas: sigmas}


@pytest.mark.parametrize("edit", EDITS)
def test_steps_follow_an_edit_of_the_levels_and_the_next_schedule_does_not(edit):
    """Callbacks write into `sigmas` while it runs, also where no version counts it (diffusers issues 10112, 7904)."""

    def ends(cls, **shaping):
        scheduler, found = cls(**shaping), []
        for edited in (True, False):
            scheduler.set_timesteps(6)
            x = noise()
            for i, timestep in enumerate(scheduler.timesteps):
                if edited and i == 2:
                    EDITS[edit](scheduler.sigmas)[3] *= 0.9
                x = scheduler.step(torch.sin(2 * x + i), timestep, x, return_dict=False)[0]
            found.append(x)
        return found

    for ours, stock in zip(
        ends(KTSFlowMatchScheduler, alpha_0=1e-9, beta_0=0.0), ends(FlowMatchEulerDiscreteScheduler), strict=True
    ):
        torch.testing.assert_close(ours, stock, rtol=0, atol=1e-6)


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


def test_a_start_after_the_touchdown_is_refused():
    """Stable Diffusion 3 counts its strength in steps of the whole schedule; nothing would be run."""
    pipe = tiny_sd3_img2img()
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["touchdown"])
    call = call_kwargs("sd3") | {"image": torch.rand(1, 3, 32, 32), "num_inference_steps": 20}
    call.pop("height", None), call.pop("width", None)
    with pytest.raises(
        ValueError, match=r"begin at step 18, but the touchdown at t = 0.7 .* to 1. steps and leaves none.*strength"
    ):
        pipe(**call, strength=0.1)
    pipe(**call, strength=0.9)


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


@pytest.mark.parametrize("cls", CLASSES)
def test_autocast_leaves_energies_in_fp32(cls):
    powers = []
    for autocast in (False, True):
        scheduler = cls(**CLASSES[cls], **PRESETS["off"])
        scheduler.set_timesteps(4)
        x = torch.linspace(-2, 2, 2 * 576).reshape(2, 576)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            for i, timestep in enumerate(scheduler.timesteps):
                scheduler.step(torch.sin(3 * x + i), timestep, x)
        powers.append(scheduler.kpe.power)
    assert powers[1].dtype == torch.float32
    torch.testing.assert_close(*powers, rtol=1e-5, atol=0)


@pytest.mark.parametrize("carry", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy])
@pytest.mark.parametrize("inference", [False, True])
def test_a_scheduler_carried_elsewhere_in_mid_run_goes_on_with_its_record(carry, inference):
    stays, goes = KTSFlowMatchScheduler(**SHAPED), KTSFlowMatchScheduler(**SHAPED)
    for scheduler in (stays, goes):
        scheduler.set_timesteps(4)
    for i, timestep in enumerate(stays.timesteps):
        if i == 2:
            stays.sigmas[3] = goes.sigmas[3] = 0.2  # unseen yet when it leaves
            with torch.inference_mode(inference):
                goes = carry(goes)
            assert len(pickle.dumps(goes)) < 20_000
        for scheduler in (stays, goes):
            scheduler.step(noise(seed=i), timestep, noise())
    assert torch.equal(goes.kpe.power, stays.kpe.power) and torch.isfinite(goes.kpe.power).all()
    assert torch.equal(goes.gains, stays.gains) and goes.schedule_table()[3]["sigma"] == pytest.approx(0.2)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtypes", [(32, 64, 64, 32), (64, 32, 32, 16), (16, 64, 32, 32)])
def test_the_dtype_may_change_in_mid_run(cls, dtypes):
    scheduler = cls(**CLASSES[cls], **SHAPED)
    scheduler.set_timesteps(4)
    by_bits = {16: torch.bfloat16, 32: torch.float32, 64: torch.float64}
    for bits, timestep in zip(dtypes, scheduler.timesteps, strict=False):
        scheduler.step(torch.full((1, 600), 0.5, dtype=by_bits[bits]), timestep, torch.zeros(1, 600, dtype=by_bits[bits]))
    if cls in FLOW_CLASSES:
        torch.testing.assert_close(scheduler.kpe.power.double(), torch.full((1, 4), 150.0).double(), rtol=1e-6, atol=0)


def test_another_size_is_another_run():
    scheduler = KTSFlowMatchScheduler()
    scheduler.set_timesteps(4)
    for shape in ((1, 4, 8, 8), (1, 600)):
        scheduler.step(torch.ones(shape), scheduler.timesteps[scheduler.step_index or 0], torch.zeros(shape))
        assert scheduler.kpe.d == scheduler.kpe.power.item()


def test_no_samples_of_an_odd_size():
    scheduler = KTSFlowMatchScheduler()
    scheduler.set_timesteps(1)
    scheduler.step(torch.empty(0, 600), scheduler.timesteps[0], torch.empty(0, 600))
    assert scheduler.kpe.power.shape == (0, 1)


def test_derivatives_along_a_direction_pass_through_steps():
    def end(x):
        scheduler = KTSFlowMatchScheduler(**SHAPED)
        scheduler.set_timesteps(3)
        return sample(scheduler, x)

    x, direction = noise().double(), noise(seed=1).double()
    _, slope = torch.func.jvp(end, (x,), (direction,))
    torch.testing.assert_close(slope, (end(x + 1e-6 * direction) - end(x - 1e-6 * direction)) / 2e-6, rtol=1e-5, atol=1e-7)


def test_token_times_may_be_differentiated():
    scheduler, x = KTSFlowMatchScheduler(**SHAPED), torch.randn(2, 6, 4)
    scheduler.set_timesteps(3)
    times = (torch.rand(2, 6) * 1000).requires_grad_()
    scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=times)[0].sum().backward()
    assert torch.isfinite(times.grad).all() and not scheduler.kpe.power.requires_grad


def test_levels_may_be_narrow():
    for cls in CLASSES:
        scheduler = cls(**CLASSES[cls])
        scheduler.set_timesteps(4)
        before = scheduler.gains
        scheduler.sigmas = scheduler.sigmas.bfloat16()
        torch.testing.assert_close(scheduler.gains, before, rtol=0.01, atol=0.01)


def test_gains_follow_a_configuration_that_is_written_to():
    scheduler = KTSFlowMatchScheduler()
    for touchdown, last in ((None, "landing"), (0.9, "touchdown")):
        scheduler.register_to_config(touchdown=touchdown)
        scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.1])
        row = scheduler.schedule_table()[-1]
        assert row["phase"] == last and (row["eta"] == 1) == (touchdown is not None)
    with pytest.raises(ValueError, match="stochastic_sampling=True re-noises"):
        scheduler.register_to_config(stochastic_sampling=True)
    assert not scheduler.config.stochastic_sampling


@pytest.mark.parametrize("touchdown", [None, 0.5])
def test_a_run_in_two_parts_is_the_whole_run(touchdown):
    whole, parts = (PartialSchedule(**SHAPED, touchdown=touchdown) for _ in range(2))
    whole.set_timesteps(7)
    end, gains = sample(whole, noise()), []
    x = noise()
    for part in (slice(0, 2), slice(2, None)):
        parts.part = part
        parts.set_timesteps(7)
        for i, timestep in enumerate(parts.timesteps, start=part.start):
            x = parts.step(torch.sin(2 * x + i), timestep, x, return_dict=False)[0]
        gains += parts.gains.tolist()
    assert torch.equal(x, end) and gains == whole.gains.tolist()
