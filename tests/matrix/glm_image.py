"""GLM-Image. Text features and prior tokens are given, so its three encoders are absent."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, GlmImagePipeline, GlmImageTransformer2DModel

from .inputs import call, text_features
from .parts import image_vae, no_text_encoder
from .registry import register

TEXT_DIM = 16


def components() -> dict[str, Any]:
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=16,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=32,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        "vae": image_vae(),
        "transformer": transformer,
        **no_text_encoder("text_encoder", "tokenizer", "processor", "vision_language_encoder"),
    }


arguments = text_features(1, 8, TEXT_DIM) | {"prior_token_ids": lambda: torch.arange(64)[None] % 32}

register(GlmImagePipeline, components, call(**arguments))
