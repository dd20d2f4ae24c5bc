"""KPEMonitorPipeline and KPECallback on real pipelines with tiny random weights."""

import copy
import functools
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DiffusionPipeline,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    FluxPipeline,
    LTXEulerAncestralRFScheduler,
    PiflowScheduler,
    PNDMScheduler,
    StableDiffusion3Pipeline,
)
from diffusers.callbacks import MultiPipelineCallbacks
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_pipelines import TINY, call_kwargs, tiny_flux, tiny_sd3, tiny_sd3_img2img

from diffusers_kts import PRESETS, KPECallback, KPEMonitorPipeline, KTSFlowMatchScheduler, save_with_stock_scheduler


class MonitoredSD3(KPEMonitorPipeline, StableDiffusion3Pipeline):
    pass


class Noted:
    note = "of the user"


class NotedSD3(KPEMonitorPipeline, Noted, StableDiffusion3Pipeline):
    def __call__(self, *args, **kwargs):
        self.note = "called"
        return super().__call__(*args, **kwargs)


class DerivedSD3(NotedSD3):
    pass


def spy_on_steps(pipe):
    """Every (v, dt) that reaches the scheduler of ``pipe``, by a subclass of its class; for comparison by hand."""
    seen, cls = [], type(pipe.scheduler)

    class Spy(cls):
        def step(self, model_output, timestep, sample, *args, **kwargs):
            out = super().step(model_output, timestep, sample, *args, **kwargs)
            i = self.step_index
            seen.append((model_output.clone(), sample.clone(), float(self.sigmas[i] - self.sigmas[i - 1]), i - 1))
            return out

    pipe.scheduler.__class__ = Spy
    return seen


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("scheduler", ["stock", "kts"])
def test_monitored_images_are_the_same_bits_and_the_energy_is_the_hand_sum(name, scheduler):
    pipe = TINY[name]()
    if scheduler == "kts":
        pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.1, beta_0=0.02)
    cls, scheduler_cls = type(pipe), type(pipe.scheduler)
    plain = pipe(**call_kwargs(name))[0]
    steps = spy_on_steps(pipe)
    pipe(**call_kwargs(name))
    pipe.scheduler.__class__ = scheduler_cls

    monitor = KPEMonitorPipeline.from_pipe(pipe)
    assert isinstance(monitor, KPEMonitorPipeline) and isinstance(monitor, cls)
    assert type(pipe) is cls and pipe.transformer is monitor.transformer
    assert inspect.signature(monitor.__call__) == inspect.signature(pipe.__call__)
    out = monitor(**call_kwargs(name))
    assert torch.equal(out[0], plain)
    assert out.kpe is monitor.kpe and type(monitor.scheduler) is scheduler_cls
    weights = torch.tensor([abs(dt) for _, _, dt, _ in steps], dtype=torch.float64)
    if name == "wan" and scheduler == "stock":  # UniPC is of second order: the trapezoidal rule
        before = torch.cat([torch.zeros(1), weights[:-1]])
        weights = torch.cat([(before + weights)[:-1] / 2, before[-1:] / 2 + weights[-1:]])
    by_hand = sum(0.5 * v.double().square().flatten(1).sum(1) * w for (v, _, _, _), w in zip(steps, weights, strict=True))
    torch.testing.assert_close(monitor.kpe.model_energy.total.double(), by_hand, rtol=1e-5, atol=0)
    as_tuple = monitor(**call_kwargs(name, return_dict=False))
    assert type(as_tuple) is tuple and torch.equal(as_tuple[0], plain)


@pytest.mark.parametrize("name", TINY)
def test_shaped_path_is_the_equation_applied_to_the_recorded_velocities(name):
    pipe = TINY[name]()
    stock = pipe(**call_kwargs(name))[0]
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.2, beta_0=0.04)
    steps = spy_on_steps(pipe)
    shaped = pipe(**call_kwargs(name))[0]
    gains = pipe.scheduler.gains
    assert not torch.allclose(stock[0], shaped[0], atol=1e-4)
    for (v, x, dt, i), (_, after, _, _) in zip(steps, steps[1:], strict=False):
        torch.testing.assert_close(after.double(), x.double() + gains[i] * dt * v.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "sd3_img2img", "flux", "ltx"])
def test_shaping_off_gives_the_stock_image(name):
    pipe = TINY[name]()
    stock = pipe(**call_kwargs(name))[0]
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["off"])
    assert torch.equal(pipe(**call_kwargs(name))[0], stock)


def test_late_start_of_img2img_is_marked():
    monitor = KPEMonitorPipeline.from_pipe(tiny_sd3_img2img())
    monitor(**call_kwargs("sd3_img2img"))
    assert monitor.kpe.late_start and monitor.kpe.num_steps == 3


def test_batches_keep_one_energy_per_image():
    monitor = KPEMonitorPipeline.from_pipe(tiny_sd3())
    monitor(**call_kwargs("sd3", num_images_per_prompt=3))
    assert len(monitor.kpe) == 3


def test_callbacks_of_the_user_are_called_as_ever():
    pipe = tiny_sd3()

    def calls(pipe):
        seen = []

        def callback(pipeline, step, timestep, kwargs):
            seen.append((type(pipeline).__name__, step, float(timestep), sorted(kwargs), kwargs["latents"].clone()))
            kwargs["latents"] = kwargs["latents"] * 0.9
            return kwargs

        return pipe(**call_kwargs("sd3", callback_on_step_end=callback))[0], seen

    (plain, before), (watched, after) = calls(pipe), calls(KPEMonitorPipeline.from_pipe(pipe))
    assert torch.equal(plain, watched)
    assert [row[:4] for row in before] == [row[:4] for row in after]
    assert all(torch.equal(a[4], b[4]) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("monitored", [False, True])
def test_kpe_callback_delivers_every_step_and_composes(monitored):
    pipe, seen = tiny_flux(), []
    if monitored:
        pipe = KPEMonitorPipeline.from_pipe(pipe)
    else:
        pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config)
    live, quiet = KPECallback(lambda step, trace: seen.append((step, trace.num_steps))), KPECallback()
    pipe(**call_kwargs("flux", callback_on_step_end=MultiPipelineCallbacks([live, quiet])))
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert quiet.kpe.num_steps == 4
    record = pipe.kpe if monitored else pipe.scheduler.kpe
    torch.testing.assert_close(quiet.kpe.power, record.power)


def test_kpe_callback_without_a_record_says_what_to_do():
    with pytest.raises(RuntimeError, match="KPEMonitorPipeline.from_pipe"):
        tiny_sd3()(**call_kwargs("sd3", callback_on_step_end=KPECallback()))
    with pytest.raises(TypeError, match="on_step"):
        KPECallback("plot")


@pytest.mark.parametrize(
    "cls",
    [
        FlowMatchHeunDiscreteScheduler,
        FlowMatchLCMScheduler,
        FlowMapEulerDiscreteScheduler,
        LTXEulerAncestralRFScheduler,
    ],
)
def test_other_flow_schedulers_are_observed_too(cls):
    pipe = tiny_sd3()
    pipe.scheduler = cls()
    torch.manual_seed(0)  # own noise comes from the global generator
    plain = pipe(**call_kwargs("sd3"))[0]
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    torch.manual_seed(0)
    assert torch.equal(monitor(**call_kwargs("sd3"))[0], plain)
    assert type(pipe.scheduler) is cls and float(monitor.kpe.model_energy.total) > 0


def test_scheduler_is_restored_when_the_run_fails():
    pipe = tiny_sd3()
    monitor = KPEMonitorPipeline.from_pipe(pipe)

    def fail(pipeline, step, timestep, kwargs):
        if step == 1:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        monitor(**call_kwargs("sd3", callback_on_step_end=fail))
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    assert "recorder" not in vars(pipe.scheduler)
    assert monitor.kpe.num_steps == 2  # what was measured before the failure is there


def test_an_observed_scheduler_keeps_its_names_and_signatures():
    pipe, seen = tiny_sd3(), []
    monitor = KPEMonitorPipeline.from_pipe(pipe)

    def look(pipeline, step, timestep, kwargs):
        cls = type(pipeline.scheduler)
        same = all(
            inspect.signature(getattr(cls, f)) == inspect.signature(getattr(FlowMatchEulerDiscreteScheduler, f))
            for f in ("step", "set_timesteps")
        )
        seen.append((cls.__name__, cls.__module__, same))
        copy.deepcopy(pipeline.scheduler).step(kwargs["latents"], timestep + 0.0, kwargs["latents"])
        return kwargs

    monitor(
        **call_kwargs("sd3", num_inference_steps=2, callback_on_step_end=lambda p, i, t, k: look(p, i, t, k) if not i else k)
    )
    assert seen == [("FlowMatchEulerDiscreteScheduler", FlowMatchEulerDiscreteScheduler.__module__, True)]
    assert [trace.stream for trace in monitor.kpe_traces] == ["scheduler", "scheduler copy 2"]
    assert monitor.kpe.stream == "scheduler" and monitor.kpe.num_steps == 2


def test_pipelines_keep_working(tmp_path):
    pipe = tiny_sd3()
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    assert monitor.components.keys() == pipe.components.keys()
    assert monitor.to(torch.float32) is monitor and isinstance(AutoPipelineForText2Image.from_pipe(monitor), type(pipe))
    assert isinstance(KPEMonitorPipeline.from_pipe(monitor), KPEMonitorPipeline)
    replaced = KPEMonitorPipeline.from_pipe(pipe, scheduler=KTSFlowMatchScheduler(shift=2.0))
    assert replaced.scheduler.shift == 2.0 and pipe.scheduler.shift == 3.0
    plain = pipe(**call_kwargs("sd3"))[0]
    monitor.save_pretrained(tmp_path)
    assert isinstance(monitor, KPEMonitorPipeline)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusion3Pipeline"
    for loaded in (
        DiffusionPipeline.from_pretrained(tmp_path),
        KPEMonitorPipeline.from_pretrained(tmp_path),
        MonitoredSD3.from_pretrained(tmp_path),
        MonitoredSD3(**pipe.components),
        MonitoredSD3.from_pipe(pipe),
        MonitoredSD3.from_pipe(tiny_sd3_img2img()),
    ):
        assert isinstance(loaded, StableDiffusion3Pipeline)
        loaded.set_progress_bar_config(disable=True)
        torch.testing.assert_close(loaded(**call_kwargs("sd3"))[0], plain, atol=1e-5, rtol=1e-5)
        assert getattr(loaded, "kpe", None) is not None or type(loaded) is StableDiffusion3Pipeline
    MonitoredSD3(**pipe.components).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["_class_name"] == "StableDiffusion3Pipeline"


def test_half_precision_pipelines_stay_so():
    pipe = tiny_sd3().to(torch.bfloat16)
    for cls in (KPEMonitorPipeline, MonitoredSD3):
        monitor = cls.from_pipe(pipe)
        assert monitor.transformer.dtype == pipe.transformer.dtype == torch.bfloat16
        assert torch.equal(monitor(**call_kwargs("sd3"))[0], pipe(**call_kwargs("sd3"))[0])


def test_classes_of_the_user_keep_their_own_call(tmp_path):
    plain = tiny_sd3()(**call_kwargs("sd3"))[0]
    derived = DerivedSD3.from_pipe(tiny_sd3())
    assert torch.equal(derived(**call_kwargs("sd3"))[0], plain)
    assert derived.note == "called" and derived.kpe.num_steps == 4
    derived.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusion3Pipeline"


def test_lora_adapters_act_under_the_monitor(tmp_path):
    pipe = tiny_sd3()
    plain = pipe(**call_kwargs("sd3"))[0]
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    layers = get_peft_model_state_dict(pipe.transformer)
    StableDiffusion3Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    adapted = pipe(**call_kwargs("sd3"))[0]
    assert not torch.allclose(adapted, plain)
    monitor = KPEMonitorPipeline.from_pipe(tiny_sd3())
    monitor.load_lora_weights(tmp_path)
    torch.testing.assert_close(monitor(**call_kwargs("sd3"))[0], adapted, atol=1e-5, rtol=1e-5)
    monitor.unload_lora_weights()
    torch.testing.assert_close(monitor(**call_kwargs("sd3"))[0], plain, atol=1e-5, rtol=1e-5)


def test_offload_hooks_keep_working():
    monitor = KPEMonitorPipeline.from_pipe(tiny_sd3())
    plain = tiny_sd3()(**call_kwargs("sd3"))[0]
    monitor.enable_model_cpu_offload(device="cpu")
    assert torch.equal(monitor(**call_kwargs("sd3"))[0], plain)


RELOAD = """
import sys, torch
import diffusers_kts
from diffusers import DiffusionPipeline
sys.path.insert(0, sys.argv[2])
from tiny_pipelines import call_kwargs
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
torch.save(pipe(**call_kwargs("flux"))[0], sys.argv[1] + "/out.pt")
assert type(pipe.scheduler).__name__ == "KTSFlowMatchScheduler" and pipe.scheduler.config.touchdown == 0.6
"""


def test_a_pipeline_saved_with_our_scheduler_loads_in_a_new_process(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = tiny_flux()
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, touchdown=0.6)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers_kts", "KTSFlowMatchScheduler"]
    subprocess.run([sys.executable, "-c", RELOAD, str(tmp_path), str(Path(__file__).parents[1])], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), pipe(**call_kwargs("flux"))[0], atol=1e-5, rtol=1e-5)


def test_saved_for_those_without_this_package(tmp_path):
    pipe = tiny_flux()
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, touchdown=0.6)
    save_with_stock_scheduler(pipe, tmp_path)
    assert isinstance(pipe.scheduler, KTSFlowMatchScheduler)
    plain = FluxPipeline.from_pretrained(tmp_path)
    assert type(plain.scheduler) is FlowMatchEulerDiscreteScheduler
    assert KTSFlowMatchScheduler.from_config(plain.scheduler.config).config.touchdown == 0.6


def test_what_cannot_be_monitored_is_refused_before_any_work(tmp_path):
    with pytest.raises(TypeError, match="from_pretrained"):
        KPEMonitorPipeline.from_pipe("stabilityai/stable-diffusion-3.5-medium")
    with pytest.raises(TypeError, match="no component 'schedular'"):
        KPEMonitorPipeline.from_pipe(tiny_sd3(), schedular=KTSFlowMatchScheduler())
    pipe = tiny_sd3()
    pipe.scheduler = PNDMScheduler()
    with pytest.raises(ValueError, match="or for a diffusion model a DDIMScheduler"):
        KPEMonitorPipeline.from_pipe(pipe)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="model_index.json cannot be read"):
        KPEMonitorPipeline.from_pretrained(tmp_path)


def test_nothing_is_warned_on_a_plain_run():
    monitor = KPEMonitorPipeline.from_pipe(tiny_sd3())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        monitor(**call_kwargs("sd3"))


class Star(FlowMatchEulerDiscreteScheduler):
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


class Renamed(FlowMatchEulerDiscreteScheduler):
    def step(self, noise_pred, timestep, latents, return_dict=True):
        return super().step(noise_pred, timestep, latents, return_dict=return_dict)


def patched(name):
    def make(config):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        setattr(
            scheduler, name, functools.wraps(own := getattr(scheduler, name))(lambda *args, **kwargs: own(*args, **kwargs))
        )
        return scheduler

    return make


@pytest.mark.parametrize("make", [Star.from_config, Renamed.from_config, patched("step"), patched("set_timesteps")])
def test_schedulers_whose_methods_somebody_has_wrapped_are_measured(make):
    plain = KPEMonitorPipeline.from_pipe(tiny_sd3())
    plain(**call_kwargs("sd3"))
    pipe = tiny_sd3()
    pipe.scheduler = make(pipe.scheduler.config)
    before = dict(vars(pipe.scheduler))
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    monitor(**call_kwargs("sd3"))
    assert torch.equal(monitor.kpe.power, plain.kpe.power) and monitor.kpe.t.tolist() == plain.kpe.t.tolist()
    assert {name for name in before if callable(before[name])} <= vars(pipe.scheduler).keys()
    assert not hasattr(pipe.scheduler, "recorder")


def test_the_monitor_is_put_around_the_pipeline_that_auto_pipeline_makes():
    """AutoPipeline builds the plain class anew; the monitor goes around what it returns."""
    monitor = KPEMonitorPipeline.from_pipe(tiny_sd3())
    again = KPEMonitorPipeline.from_pipe(AutoPipelineForText2Image.from_pipe(monitor))
    again(**call_kwargs("sd3"))
    assert again.kpe.num_steps == 4


def test_a_scheduler_without_one_velocity_is_named():
    pipe = tiny_sd3()
    pipe.scheduler = PiflowScheduler()
    with pytest.raises(ValueError, match="PiflowScheduler, whose energy cannot be measured: its network predicts a grid"):
        KPEMonitorPipeline.from_pipe(pipe)
