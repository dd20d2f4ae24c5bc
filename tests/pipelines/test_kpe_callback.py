"""KPECallback(pipe): the energy of any pipeline without the monitor."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline, DreamLitePipeline, PNDMScheduler
from diffusers.callbacks import MultiPipelineCallbacks
from tiny_diffusion import DIFFUSION
from tiny_pipelines import TINY, call_kwargs

from diffusers_kts import KPECallback, KPEMonitorPipeline, KTSFlowMatchScheduler


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_the_record_is_the_monitors_and_the_scheduler_its_own_class_again(name):
    pipe = TINY[name]()
    cls, scheduler = type(pipe), type(pipe.scheduler)
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    images = monitor(**call_kwargs(name))[0]
    energy = KPECallback(pipe)
    assert (
        energy.kpe is None
        and type(pipe.scheduler) is scheduler
        and isinstance(pipe, cls)
        and type(pipe).__name__ == cls.__name__
    )
    measured = pipe(**call_kwargs(name), callback_on_step_end=energy)[0]
    assert torch.equal(measured, images)
    assert torch.equal(energy.kpe.power, monitor.kpe.power) and energy.kpe.t_start == monitor.kpe.t_start
    assert type(pipe.scheduler) is scheduler and not hasattr(pipe.scheduler, "recorder")
    assert torch.equal(pipe(**call_kwargs(name))[0], images)  # without the callback nothing is recorded
    assert energy.kpe.num_steps == monitor.kpe.num_steps


def test_diffusion_pipelines_and_our_schedulers_are_measured_alike():
    pipe = DIFFUSION["sd15"]()
    energy = KPECallback(pipe)
    pipe("a cat", num_inference_steps=3, output_type="latent", height=32, width=32, callback_on_step_end=energy)
    assert energy.kpe.num_steps >= 3 and energy.kpe.per_dim.isfinite().all()
    pipe = TINY["sd3"]()
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config)
    energy = KPECallback(pipe)
    pipe(**call_kwargs("sd3"), callback_on_step_end=energy)
    assert torch.equal(energy.kpe.power, pipe.scheduler.kpe.power) and type(pipe.scheduler) is KTSFlowMatchScheduler


def test_a_call_that_raises_leaves_the_scheduler_as_it_was():
    pipe = TINY["sd3"]()
    scheduler = type(pipe.scheduler)

    def fail(step, trace):
        if step == 2:
            raise RuntimeError("stop")

    energy = KPECallback(pipe, fail)
    with pytest.raises(RuntimeError, match="stop"):
        pipe(**call_kwargs("sd3"), callback_on_step_end=energy)
    assert type(pipe.scheduler) is scheduler and energy.kpe.num_steps == 3
    energy = KPECallback(pipe)
    pipe.transformer.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("in the network")))
    with pytest.raises(RuntimeError, match="in the network"):
        pipe(**call_kwargs("sd3"), callback_on_step_end=energy)
    assert type(pipe.scheduler) is scheduler and energy.kpe is None


def test_callbacks_compose_and_the_pipeline_stays_itself(tmp_path):
    pipe, seen = TINY["sd3"](), []
    one, two = KPECallback(pipe, lambda step, trace: seen.append(trace.num_steps)), KPECallback(pipe, record_turn=True)
    assert type(pipe) is type(copy.copy(pipe)) and type(pipe).__mro__[1].__name__ == "StableDiffusion3Pipeline"
    pipe(**call_kwargs("sd3"), callback_on_step_end=MultiPipelineCallbacks([one, two]))
    assert seen == [1, 2, 3, 4] and torch.equal(one.kpe.power, two.kpe.power) and two.kpe.settling.shape == (1,)
    pipe.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)).__module__.startswith("diffusers.")


def test_what_cannot_be_measured_is_refused_at_once():
    with pytest.raises(TypeError, match="KPECallback got 'pipe'"):
        KPECallback("pipe")
    pipe = TINY["sd3"]()
    pipe.scheduler = PNDMScheduler()
    with pytest.raises(ValueError, match="not flow matching"):
        KPECallback(pipe)
    with pytest.raises(TypeError, match="calls no callback"):
        KPECallback(DreamLitePipeline.__new__(DreamLitePipeline))
