"""LongCat-Image and its Edit, read by a Qwen2.5-VL encoder.

Edit enlarges its picture to a million pixels; its autoencoder here shrinks it 32 times.
"""

from typing import Any

from diffusers import LongCatImageEditPipeline, LongCatImagePipeline, LongCatImageTransformer2DModel
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT

from .inputs import call, picture, small
from .parts import dynamic_schedule, image_vae, picture_processor, qwen2_5_vl, qwen_tokenizer
from .registry import register
from .texts import LM


def components(halvings: int = 1) -> dict[str, Any]:
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=LM["hidden_size"],
        pooled_projection_dim=LM["hidden_size"],
        axes_dims_rope=[4, 6, 6],
    )
    return {
        "scheduler": dynamic_schedule(),
        "vae": image_vae(halvings, latent_channels=16),
        "transformer": transformer,
        "text_encoder": qwen2_5_vl(),
        "tokenizer": qwen_tokenizer(),
        "text_processor": picture_processor(),
    }


def edit_call(**more: Any) -> dict[str, Any]:
    arguments = small(**more)
    del arguments["height"], arguments["width"]
    return arguments


text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT}

register(LongCatImagePipeline, components, call(**text, enable_prompt_rewrite=False))
register(LongCatImageEditPipeline, lambda: components(halvings=5), lambda: edit_call(**text, image=picture()))
