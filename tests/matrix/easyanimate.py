"""EasyAnimate: text, control and inpainting; the shift is always given as ``mu = 1``."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLMagvit,
    EasyAnimateControlPipeline,
    EasyAnimateInpaintPipeline,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)

from .checks import CHECKS
from .inputs import features, small
from .parts import no_text_encoder
from .registry import Limit, register

CHANNELS = 4
BROKEN = "its call fails in diffusers 0.42 before the first step, with any scheduler: an argument its encode_prompt lacks"


def components(in_channels: int = CHANNELS, **transformer: Any) -> dict[str, Any]:
    return no_text_encoder() | {
        "transformer": EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=in_channels,
            out_channels=CHANNELS,
            patch_size=2,
            sample_width=8,
            sample_height=8,
            num_layers=2,
            mmdit_layers=1,
            time_embed_dim=4,
            text_embed_dim=16,
            time_position_encoding_type="3d_rope",
            **transformer,
        ),
        "vae": AutoencoderKLMagvit(
            latent_channels=CHANNELS, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=2
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def call(**more: Any) -> dict[str, Any]:
    ones = torch.ones(1, 6, dtype=torch.long)
    return small(
        prompt_embeds=features(1, 6, 16),
        prompt_attention_mask=ones,
        negative_prompt_embeds=features(1, 6, 16, seed=3),
        negative_prompt_attention_mask=ones,
        num_frames=5,
        **more,
    )


def frames(channels: int = 3, seed: int = 4) -> torch.Tensor:
    return features(1, channels, 5, 32, 32, seed=seed).sigmoid()


register(EasyAnimatePipeline, components, call)
register(
    EasyAnimateControlPipeline,
    lambda: components(2 * CHANNELS),
    lambda: call(control_video=frames()),
    limits=dict.fromkeys(
        CHECKS,
        Limit(
            "its call fails in diffusers 0.42 before the first step, with any scheduler: an argument its encode_prompt lacks",
            error="text_encoder_index",
        ),
    ),
)
register(
    EasyAnimateInpaintPipeline,
    lambda: components(3 * CHANNELS, resize_inpaint_mask_directly=False),
    lambda: call(video=frames(), mask_video=(frames(1, seed=5) > 0.5).float(), strength=0.75),
)
