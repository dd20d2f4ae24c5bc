"""Lumina-Next and Lumina 2. Text features are given, so the Gemma encoders are absent."""

from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
)

from .inputs import call, text_features
from .parts import dynamic_schedule, image_vae, no_text_encoder
from .registry import register

TEXT_DIM = 16


def next_components() -> dict[str, Any]:
    transformer = LuminaNextDiT2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        learn_sigma=True,
        cross_attention_dim=TEXT_DIM,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": image_vae(),
        "transformer": transformer,
        **no_text_encoder(),
    }


def second_components() -> dict[str, Any]:
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 32, 32),
        cap_feat_dim=TEXT_DIM,
    )
    return {"scheduler": dynamic_schedule(), "vae": image_vae(), "transformer": transformer, **no_text_encoder()}


text = text_features(1, 8, TEXT_DIM, mask="prompt_attention_mask")

register(LuminaPipeline, next_components, call(**text))
register(Lumina2Pipeline, second_components, call(**text))
