"""Modular pipelines of diffusers: shaped by their scheduler component, monitored like the others."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxModularPipeline, ModularPipeline, StableDiffusion3ModularPipeline
from tiny_pipelines import PROMPT, _flux_components, _sd3_components

from diffusers_kts import PRESETS, KPEMonitorPipeline, KTSFlowMatchScheduler, save_with_stock_scheduler

TINY = {"flux": (FluxModularPipeline, _flux_components), "sd3": (StableDiffusion3ModularPipeline, _sd3_components)}


def build(name):
    cls, components = TINY[name]
    pipe = cls()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.update_components(**components())
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe):
    noise = torch.Generator().manual_seed(0)
    return pipe(prompt=PROMPT, height=32, width=32, num_inference_steps=4, generator=noise, output="latents")


def shape(pipe, **settings):
    pipe.update_components(scheduler=KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **settings))


@pytest.mark.parametrize("name", TINY)
def test_monitored_modular_pipelines_give_the_same_bits_and_the_energy_of_the_scheduler(name):
    pipe = build(name)
    stock = latents(pipe)
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    assert torch.equal(latents(monitor), stock)
    assert isinstance(monitor, TINY[name][0]) and type(pipe) is TINY[name][0]
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler and monitor.kpe.num_steps == 4
    plain = monitor.kpe.model_energy.total

    shape(pipe, **PRESETS["off"])
    assert torch.equal(latents(pipe), stock)
    torch.testing.assert_close(pipe.scheduler.kpe.model_energy.total, plain)

    shape(pipe, alpha_0=0.2, beta_0=0.04)
    shaped = latents(pipe)
    assert not torch.allclose(shaped, stock, atol=1e-4)
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    assert torch.equal(latents(monitor), shaped)
    torch.testing.assert_close(monitor.kpe.path_energy.total, pipe.scheduler.kpe.path_energy.total)
    assert monitor.kpe_traces == [monitor.kpe] and float(monitor.kpe.path_energy.total) > 0


def test_a_replaced_scheduler_leaves_the_original_pipeline_alone():
    pipe = build("sd3")
    stock = latents(pipe)
    monitor = KPEMonitorPipeline.from_pipe(
        pipe, scheduler=KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.2)
    )
    assert not torch.allclose(latents(monitor), stock, atol=1e-4)
    assert torch.equal(latents(pipe), stock)
    assert pipe.get_component_spec("scheduler").type_hint is FlowMatchEulerDiscreteScheduler
    assert monitor.get_component_spec("scheduler").type_hint is KTSFlowMatchScheduler


def test_a_state_holds_the_record_too():
    monitor = KPEMonitorPipeline.from_pipe(build("flux"))
    state = monitor(prompt=PROMPT, height=32, width=32, num_inference_steps=2)
    assert state.kpe is monitor.kpe and monitor.kpe.num_steps == 2


def test_monitored_and_shaped_modular_pipelines_are_saved_as_their_own_class(tmp_path):
    pipe = build("sd3")
    shape(pipe, alpha_0=0.2, beta_0=0.04)
    shaped = latents(pipe)
    KPEMonitorPipeline.from_pipe(pipe).save_pretrained(str(tmp_path), overwrite_modular_index=True)
    index = json.loads((tmp_path / "modular_model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3ModularPipeline"
    assert index["scheduler"][:2] == ["diffusers_kts", "KTSFlowMatchScheduler"]
    loaded = ModularPipeline.from_pretrained(str(tmp_path))
    loaded.load_components()
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is KTSFlowMatchScheduler and loaded.scheduler.config.alpha_0 == 0.2
    torch.testing.assert_close(latents(loaded), shaped, atol=1e-5, rtol=1e-5)


def test_modular_pipelines_are_saved_for_those_without_this_package(tmp_path):
    pipe = build("sd3")
    shape(pipe, alpha_0=0.2)
    save_with_stock_scheduler(pipe, str(tmp_path), overwrite_modular_index=True)
    index = json.loads((tmp_path / "modular_model_index.json").read_text())
    assert index["scheduler"][:2] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    loaded = ModularPipeline.from_pretrained(str(tmp_path))
    loaded.load_components("scheduler")
    assert type(loaded.scheduler) is FlowMatchEulerDiscreteScheduler and type(pipe.scheduler) is KTSFlowMatchScheduler
    assert KTSFlowMatchScheduler.from_config(loaded.scheduler.config).config.alpha_0 == 0.2
