"""Wan 2.1 and its relatives: UniPC on flow sigmas, as the checkpoints have it."""

from typing import Any

from diffusers import (
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    LucyEditPipeline,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_DIM, _wan_components

from .clips import clip, clip_image_processor, clip_vision
from .inputs import picture, small
from .registry import Tiny, assemble, tiny

MODEL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": T5_DIM,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
IMAGE_DIM = 8
CONDITIONED = 16 + 4 + 16  # channels: latents, mask of the frames that are given, latents of those frames


def wan_call(**more: Any) -> dict[str, Any]:
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "max_sequence_length": 16}
    return small(**texts | {"height": 16, "width": 16} | more)


def with_image_encoder(transformer: Any) -> dict[str, Any]:
    return _wan_components() | {
        "transformer": transformer,
        "image_encoder": clip_vision(IMAGE_DIM),
        "image_processor": clip_image_processor(),
    }


@tiny(WanPipeline)
def wan() -> Tiny:
    pipe = assemble(WanPipeline, _wan_components)
    return Tiny(pipe, lambda: wan_call(num_frames=5))


@tiny(WanImageToVideoPipeline)
def wan_image_to_video() -> Tiny:
    pipe = assemble(
        WanImageToVideoPipeline,
        lambda: with_image_encoder(WanTransformer3DModel(in_channels=CONDITIONED, image_dim=IMAGE_DIM, **MODEL)),
    )
    return Tiny(pipe, lambda: wan_call(image=picture(16), num_frames=5))


@tiny(WanVideoToVideoPipeline)
def wan_video_to_video() -> Tiny:
    pipe = assemble(WanVideoToVideoPipeline, _wan_components)
    return Tiny(pipe, lambda: wan_call(video=clip(5)))


@tiny(WanVACEPipeline)
def wan_vace() -> Tiny:
    pipe = assemble(
        WanVACEPipeline,
        lambda: _wan_components() | {"transformer": WanVACETransformer3DModel(vace_layers=[0], vace_in_channels=96, **MODEL)},
    )
    return Tiny(pipe, lambda: wan_call(video=clip(5), mask=clip(5, seed=9), num_frames=5))


@tiny(WanAnimatePipeline)
def wan_animate() -> Tiny:
    """Two segments, so that the schedule begins anew within one call."""

    def components() -> dict[str, Any]:
        transformer = WanAnimateTransformer3DModel(
            image_dim=IMAGE_DIM,
            motion_encoder_channel_sizes={"4": 8, "8": 8},
            motion_encoder_size=8,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
            **MODEL,
        )
        return with_image_encoder(transformer)

    def call() -> dict[str, Any]:
        arguments = wan_call(image=picture(16), pose_video=clip(9), face_video=clip(9, size=8), segment_frame_length=5)
        return arguments | {"num_inference_steps": 3}

    return Tiny(assemble(WanAnimatePipeline, components), call)


@tiny(ChronoEditPipeline)
def chrono_edit() -> Tiny:
    pipe = assemble(
        ChronoEditPipeline,
        lambda: with_image_encoder(ChronoEditTransformer3DModel(in_channels=CONDITIONED, image_dim=IMAGE_DIM, **MODEL)),
    )
    return Tiny(pipe, lambda: wan_call(image=picture(16), num_frames=5))


@tiny(LucyEditPipeline)
def lucy_edit() -> Tiny:
    pipe = assemble(
        LucyEditPipeline, lambda: _wan_components() | {"transformer": WanTransformer3DModel(in_channels=32, **MODEL)}
    )
    return Tiny(pipe, lambda: wan_call(video=clip(5), num_frames=5))
