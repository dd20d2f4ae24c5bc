"""LTX-Video: dynamic shifting with a terminal shift; per-token timesteps, slices of the latents, windows of a long video."""

from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXI2VLongMultiPromptPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
)
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, _ltx_components

from .inputs import picture, small
from .registry import Tiny, assemble, tiny


def ltx_call(**more: Any) -> dict[str, Any]:
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "max_sequence_length": 16}
    return small(**texts | {"num_frames": 9, "guidance_scale": 3.0} | more)


@tiny(LTXPipeline)
def ltx() -> Tiny:
    return Tiny(assemble(LTXPipeline, _ltx_components), ltx_call)


@tiny(LTXImageToVideoPipeline)
def ltx_image_to_video() -> Tiny:
    return Tiny(assemble(LTXImageToVideoPipeline, _ltx_components), lambda: ltx_call(image=picture(32)))


def _static_shift_components() -> dict[str, Any]:
    """For pipelines that give the scheduler no ``mu``."""
    return _ltx_components() | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0)}


@tiny(LTXConditionPipeline)
def ltx_condition() -> Tiny:
    """Every token has its own timestep; the first frame is given and does not move."""
    return Tiny(assemble(LTXConditionPipeline, _static_shift_components), lambda: ltx_call(image=picture(32)))


@tiny(LTXI2VLongMultiPromptPipeline)
def ltx_i2v_long() -> Tiny:
    """Two windows, each a run of its own. With a flow scheduler the last step of a run is never taken (diffusers' loop), and
    a callback must not hand back ``latents``, which are the whole canvas and not the packed state."""
    pipe = assemble(LTXI2VLongMultiPromptPipeline, _static_shift_components)
    return Tiny(
        pipe,
        lambda: ltx_call(
            prompt=f"{PROMPT} | {NEGATIVE_PROMPT}",
            cond_image=picture(32),
            num_frames=17,
            temporal_tile_size=12,
            temporal_overlap=4,
            callback_on_step_end_tensor_inputs=[],
        ),
    )
