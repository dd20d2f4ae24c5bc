"""Motif-Video: a guider object, and any scheduler that knows ``mu``. Text as features; Wan's autoencoder."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    MotifVideoImage2VideoPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
)

from .clips import siglip_image_processor
from .inputs import features, picture, small
from .parts import no_text_encoder
from .registry import register


def components(**more: Any) -> dict[str, Any]:
    return no_text_encoder() | {
        "transformer": MotifVideoTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            text_embed_dim=8,
            rope_axes_dim=(4, 4, 4),
        ),
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "guider": ClassifierFreeGuidance(guidance_scale=5.0),
        **more,
    }


def call(**more: Any) -> dict[str, Any]:
    return small(
        prompt_embeds=features(1, 6, 8),
        prompt_attention_mask=torch.ones(1, 6),
        negative_prompt_embeds=features(1, 6, 8, seed=3),
        negative_prompt_attention_mask=torch.ones(1, 6),
        num_frames=5,
        **more,
    )


register(MotifVideoPipeline, components, call)
register(
    MotifVideoImage2VideoPipeline,
    lambda: components(feature_extractor=siglip_image_processor()),
    lambda: call(image=picture(), prompt=None),
)
