"""ERNIE-Image. Text features are given, so the Mistral encoder is absent."""

from typing import Any

import torch
from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel, FlowMatchEulerDiscreteScheduler

from .flux2 import tiny_flux2_vae
from .inputs import call, features
from .parts import no_text_encoder
from .registry import register

TEXT_DIM = 16


def components() -> dict[str, Any]:
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=TEXT_DIM,
        rope_axes_dim=(8, 4, 4),
    )
    torch.nn.init.normal_(transformer.final_linear.weight, std=0.1)  # zero at first, and so would be the velocity
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": tiny_flux2_vae(),
        "transformer": transformer,
        **no_text_encoder("text_encoder", "tokenizer", "pe", "pe_tokenizer"),
    }


text = {
    "prompt_embeds": lambda: [features(8, TEXT_DIM)],
    "negative_prompt_embeds": lambda: [features(8, TEXT_DIM, seed=3)],
}

register(ErnieImagePipeline, components, call(**text))
