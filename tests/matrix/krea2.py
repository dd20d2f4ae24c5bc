"""Krea 2. Text features of several layers are given, so the Qwen3-VL encoder is absent."""

from typing import Any

from diffusers import Krea2Pipeline, Krea2Transformer2DModel

from .inputs import call, text_features
from .parts import dynamic_schedule, no_text_encoder
from .qwenimage import CHANNELS, tiny_qwen_vae
from .registry import register

TEXT_DIM, TEXT_LAYERS = 16, 2


def components() -> dict[str, Any]:
    transformer = Krea2Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        text_hidden_dim=TEXT_DIM,
        num_text_layers=TEXT_LAYERS,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "scheduler": dynamic_schedule(),
        "vae": tiny_qwen_vae(),
        "transformer": transformer,
        "text_encoder_select_layers": (0, 1),
        **no_text_encoder(),
    }


text = text_features(1, 8, TEXT_LAYERS, TEXT_DIM, mask="prompt_embeds_mask")

register(Krea2Pipeline, components, call(**text))
