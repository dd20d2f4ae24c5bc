"""Settings act whichever way they are changed, and a gain of one's own takes the place of launch and landing."""

import copy
import math
import warnings

import pytest
import torch

from diffusers_kts import (
    PRESETS,
    KTSAdaptiveFlowMatchScheduler,
    KTSDDIMScheduler,
    KTSDPMSolverMultistepScheduler,
    KTSEulerDiscreteScheduler,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
    KTSUniPCMultistepScheduler,
    Shaping,
)

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
CLASSES = {
    KTSFlowMatchScheduler: {},
    KTSFlowMatchHeunScheduler: {},
    KTSAdaptiveFlowMatchScheduler: {},
    KTSUniPCMultistepScheduler: FLOW,
    KTSDPMSolverMultistepScheduler: FLOW,
    KTSEulerDiscreteScheduler: {},
    KTSDDIMScheduler: {"clip_sample": False},
}
CHANGES = {
    "alpha_0": 0.5,
    "beta_0": 0.03,
    "tau_split": 0.4,
    "k": 2.0,
    "early_schedule": "constant",
    "late_schedule": "linear",
    "touchdown": 0.7,
    "gain": [0.9] * 6,
}


def by_register(scheduler, name, value):
    scheduler.register_to_config(**{name: value})
    return scheduler


def by_attribute(scheduler, name, value):
    setattr(scheduler, name, value)
    return scheduler


def by_from_config(scheduler, name, value):
    scheduler.register_to_config(**{name: value})
    return type(scheduler).from_config(scheduler.config)


def sample(scheduler, steps=6):
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for i, timestep in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(torch.sin(2 * seen + i), timestep, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("change", [by_register, by_attribute, by_from_config])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_setting_changed_in_any_way_is_the_one_that_acts(cls, name, change):
    value = CHANGES[name]
    scheduler = cls(**CLASSES[cls])
    sample(scheduler)
    changed = change(scheduler, name, value)
    made_with_it = cls(**CLASSES[cls], **{name: value})
    assert torch.equal(sample(changed), sample(made_with_it))
    assert not torch.equal(sample(changed), sample(cls(**CLASSES[cls])))
    assert changed.config[name] == value and getattr(changed, name) == value
    assert changed.kpe.settings == made_with_it.kpe.settings and changed.gains.tolist() == made_with_it.gains.tolist()


@pytest.mark.parametrize("cls", CLASSES)
def test_gains_follow_a_setting_within_a_run(cls):
    scheduler = cls(**CLASSES[cls])
    scheduler.set_timesteps(6)
    scheduler.alpha_0 = 0.25
    assert scheduler.gains[0] == pytest.approx(Shaping(alpha_0=0.25)(float(scheduler.plan.times[0])))


def test_a_wrong_setting_changes_nothing():
    scheduler = KTSFlowMatchScheduler(alpha_0=0.02)
    before = dict(scheduler.config)
    for name, value in {"alpha_0": -2.0, "beta_0": 0.1, "touchdown": 1.0, "gain": [1.0, -1.0], "k": "3"}.items():
        with pytest.raises(ValueError, match=name):
            scheduler.register_to_config(**{name: value})
        with pytest.raises(ValueError, match=name):
            setattr(scheduler, name, value)
    assert dict(scheduler.config) == before


def test_settings_without_stars_are_refused():
    config = KTSFlowMatchScheduler().config
    with pytest.raises(TypeError, match=r"write \*\*"):
        KTSFlowMatchScheduler.from_config(config, PRESETS["balanced"])
    made, unused = KTSFlowMatchScheduler.from_config(config, True, alpha_0=0.3)
    assert made.alpha_0 == 0.3 and isinstance(unused, dict)


def test_arguments_of_loading_that_diffusers_ignores_are_ignored(tmp_path):
    KTSFlowMatchScheduler(alpha_0=0.3).save_pretrained(tmp_path)
    loaded = KTSFlowMatchScheduler.from_pretrained(tmp_path, torch_dtype=torch.float16, variant="fp16", use_safetensors=True)
    assert loaded.alpha_0 == 0.3


def test_shaping_is_one_value():
    shaping = Shaping(alpha_0=0.02, touchdown=0.8)
    assert (
        Shaping.of(KTSFlowMatchScheduler(**shaping.to_dict()).config)
        == shaping
        == KTSFlowMatchScheduler(**shaping.to_dict()).shaping
    )
    assert PRESETS["off"] == Shaping(alpha_0=0, beta_0=0).to_dict()
    assert Shaping(alpha_0=0, beta_0=0).is_off and not shaping.is_off
    with pytest.raises(ValueError, match="touchdown is 0"):
        Shaping(touchdown=0)


# --- a gain of one's own


@pytest.mark.parametrize("cls", CLASSES)
def test_a_gain_that_says_what_the_settings_say_gives_the_same_path(cls):
    shaping = Shaping(alpha_0=0.3, beta_0=0.04)
    by_settings = cls(**CLASSES[cls], alpha_0=0.3, beta_0=0.04)
    by_function = cls(**CLASSES[cls], gain=shaping)
    torch.testing.assert_close(sample(by_function), sample(by_settings), rtol=1e-6, atol=1e-6)
    assert by_function.kpe.settings["gain"] == "a function of the flow time"


def test_one_number_per_step_scales_each_displacement():
    gain, x, v = [1.2, 0.5, 0.0, 1.0], torch.zeros(1, 3), torch.ones(1, 3)
    scheduler = KTSFlowMatchScheduler.from_config(KTSFlowMatchScheduler().config, gain=gain)
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.4, 0.1])
    for timestep in scheduler.timesteps:
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    torch.testing.assert_close(x, torch.full((1, 3), -(0.3 * 1.2 + 0.3 * 0.5 + 0.0 + 0.1)))
    assert scheduler.kpe.gains.tolist() == gain and scheduler.kpe.settings["gain"] == gain


def test_heun_takes_the_gain_of_the_level_at_both_evaluations():
    scheduler = KTSFlowMatchHeunScheduler(gain=[1.0, 1.1, 1.2])
    scheduler.set_timesteps(3)
    assert scheduler.gains.tolist() == [1.0, 1.1, 1.1, 1.2, 1.2]


def test_a_gain_that_does_not_fit_is_refused_before_any_step():
    scheduler = KTSFlowMatchScheduler(gain=[1.0] * 5)
    with pytest.raises(ValueError, match="gain has 5 numbers, the schedule 4 steps"):
        scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="gain is nan at step 1"):
        scheduler.gain = [1.0, math.nan]
    with pytest.raises(ValueError, match="gain is 'linear'"):
        scheduler.gain = "linear"
    scheduler.gain = lambda t: t - 0.5
    with pytest.raises(ValueError, match="gain is -0.5 at t = 0"):
        scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="set gain=None"):
        scheduler.gain = lambda t: 1.0
        scheduler.set_timesteps(4)
        scheduler.step(torch.ones(1, 2, 3), scheduler.timesteps[0], torch.ones(1, 2, 3), per_token_timesteps=torch.ones(1, 2))


def test_a_list_is_saved_and_a_function_is_not(tmp_path):
    KTSFlowMatchScheduler(gain=torch.tensor([1.0, 0.5])).save_pretrained(tmp_path / "list")
    assert KTSFlowMatchScheduler.from_pretrained(tmp_path / "list").gain == [1.0, 0.5]
    scheduler = KTSFlowMatchScheduler(gain=math.cos)
    with pytest.warns(UserWarning, match="a gain that is a function is not saved"):
        scheduler.save_pretrained(tmp_path / "function")
    assert KTSFlowMatchScheduler.from_pretrained(tmp_path / "function").config.gain is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "alpha_0" in repr(scheduler)
    for other in (copy.deepcopy(scheduler), KTSFlowMatchScheduler.from_config(scheduler.config)):
        other.set_timesteps(3)
        assert other.gains[1] == pytest.approx(math.cos(other.plan.times[1]))
