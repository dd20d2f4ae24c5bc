"""Ovis-Image. Text features are given, so the Qwen3 encoder is absent."""

from typing import Any

from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

from .inputs import call, text_features
from .parts import dynamic_schedule, image_vae, no_text_encoder
from .registry import register

TEXT_DIM = 16


def components() -> dict[str, Any]:
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=(4, 6, 6),
    )
    return {"scheduler": dynamic_schedule(), "vae": image_vae(), "transformer": transformer, **no_text_encoder()}


text = text_features(1, 8, TEXT_DIM) | {"negative_prompt": None}

register(OvisImagePipeline, components, call(**text))
