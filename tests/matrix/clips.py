"""Seeded clips and sounds for the calls, and the small image encoders that several families share."""

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from .inputs import features, picture


def clip(frames: int, size: int = 16, seed: int = 1) -> list[Image.Image]:
    return [picture(size, seed + i) for i in range(frames)]


def sound(samples: int, channels: int = 2, seed: int = 1) -> torch.Tensor:
    return 0.1 * features(1, channels, samples, seed=seed)


def clip_vision(dim: int = 8, size: int = 8) -> CLIPVisionModel:
    """17 tokens of ``dim`` features from a picture of 4 x 4 patches."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=dim,
            intermediate_size=2 * dim,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=size,
            patch_size=size // 4,
        )
    )


def clip_image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def siglip_vision(dim: int = 8) -> SiglipVisionModel:
    """16 tokens of ``dim`` features."""
    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=dim,
            intermediate_size=2 * dim,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=2,
        )
    )


def siglip_image_processor() -> SiglipImageProcessor:
    return SiglipImageProcessor(size={"height": 8, "width": 8})
