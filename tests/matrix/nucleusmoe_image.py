"""Nucleus-MoE. Text features are given, so the Qwen3-VL encoder is absent."""

from typing import Any

from diffusers import NucleusMoEImagePipeline, NucleusMoEImageTransformer2DModel

from .inputs import call, text_features
from .parts import dynamic_schedule, no_text_encoder
from .qwenimage import CHANNELS, tiny_qwen_vae
from .registry import register

TEXT_DIM = 16


def components() -> dict[str, Any]:
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=(4, 6, 6),
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    return {
        "scheduler": dynamic_schedule(),
        "vae": tiny_qwen_vae(),
        "transformer": transformer,
        **no_text_encoder("text_encoder", "processor"),
    }


text = text_features(1, 8, TEXT_DIM, mask="prompt_embeds_mask")

register(NucleusMoEImagePipeline, components, call(**text))
