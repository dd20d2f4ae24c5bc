"""Ideogram 4: guidance by a second transformer that sees no text. The Qwen3-VL encoder has its real number of layers."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, Ideogram4Pipeline, Ideogram4Transformer2DModel
from tiny_pipelines import PROMPT

from .flux2 import tiny_flux2_vae
from .inputs import call
from .parts import qwen3_vl
from .registry import register
from .texts import LM, lm_tokenizer

TAPPED = 13  # layers of the encoder that the pipeline reads


def transformer() -> Ideogram4Transformer2DModel:
    return Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=TAPPED * LM["hidden_size"],
        mrope_section=(4, 2, 2),
    )


def components() -> dict[str, Any]:
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": tiny_flux2_vae(),
        "text_encoder": qwen3_vl(layers=36).model,
        "tokenizer": lm_tokenizer(),
        "transformer": transformer(),
        "unconditional_transformer": transformer(),
    }


register(
    Ideogram4Pipeline, components, call(prompt=PROMPT, max_sequence_length=64, guidance_scale=3.0, guidance_schedule=None)
)
