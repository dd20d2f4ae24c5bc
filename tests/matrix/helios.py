"""Helios: chunks of frames, each a run of its own; the pyramid has stages of growing resolution. Wan's other components."""

from typing import Any

from diffusers import HeliosDMDScheduler, HeliosPipeline, HeliosPyramidPipeline, HeliosScheduler, HeliosTransformer3DModel
from tiny_pipelines import T5_DIM, _wan_components

from .checks import CHECKS
from .registry import Limit, register
from .wan import wan_call

NO_STAGES = Limit(
    "its stages ask the scheduler for parts of a schedule, which only Helios' own scheduler knows",
    error="multiple values for argument .device.",
)


def components(scheduler: Any = HeliosScheduler, stages: int = 1) -> dict[str, Any]:
    return _wan_components() | {
        "transformer": HeliosTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=T5_DIM,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_dim=(4, 4, 4),
        ),
        "scheduler": scheduler(stages=stages, stage_range=[i / stages for i in range(stages)] + [1], gamma=0.3),
    }


def call(**more: Any) -> dict[str, Any]:
    return wan_call(num_frames=10, num_latent_frames_per_chunk=2, history_sizes=[4, 2, 1], **more)


def pyramid() -> dict[str, Any]:
    return components(stages=3)


def distilled() -> dict[str, Any]:
    return components(HeliosDMDScheduler, stages=3)


def pyramid_call() -> dict[str, Any]:
    arguments = call(height=64, width=64, pyramid_num_inference_steps_list=[2, 2, 2])
    del arguments["num_inference_steps"]
    return arguments


register(HeliosPipeline, components, call)
register(
    HeliosPyramidPipeline,
    pyramid,
    pyramid_call,
    limits=dict.fromkeys(
        CHECKS,
        Limit(
            "its stages ask the scheduler for parts of a schedule, which only Helios' own scheduler knows",
            error="multiple values for argument .device.",
        ),
    ),
)
