"""HunyuanImage 2.1 and its refiner. Text features are given, so the Qwen2.5-VL and ByT5 encoders are absent."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageRefinerPipeline,
    HunyuanImageTransformer2DModel,
)

from .inputs import call, features, image
from .parts import no_text_encoder
from .registry import register

TEXT_DIM = 16
SIZE = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_DIM,
}


def components() -> dict[str, Any]:
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, patch_size=(1, 1), text_embed_2_dim=TEXT_DIM, rope_axes_dim=(8, 8), **SIZE
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
        scaling_factor=0.75,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "vae": vae,
        "transformer": transformer,
        **no_text_encoder("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    }


def refiner() -> dict[str, Any]:
    transformer = HunyuanImageTransformer2DModel(
        in_channels=16, out_channels=8, patch_size=(1, 1, 1), rope_axes_dim=(4, 6, 6), guidance_embeds=True, **SIZE
    )
    vae = AutoencoderKLHunyuanImageRefiner(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=4.0),
        "vae": vae,
        "transformer": transformer,
        **no_text_encoder(),
    }


def tokens() -> torch.Tensor:
    return torch.ones(1, 8, dtype=torch.long)


text = {"prompt_embeds": lambda: features(1, 8, TEXT_DIM), "prompt_embeds_mask": tokens}
second = {"prompt_embeds_2": lambda: features(1, 8, TEXT_DIM, seed=3), "prompt_embeds_mask_2": tokens}

register(HunyuanImagePipeline, components, call(**text, **second))
register(HunyuanImageRefinerPipeline, refiner, call(**text, image=image))
