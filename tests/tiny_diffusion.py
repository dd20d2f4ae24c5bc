"""SD 1.5, SDXL and DiT in small, as `tiny_pipelines` builds the flow-matching ones."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_pipelines import CLIP_DIM, NEGATIVE_PROMPT, PROMPT, _build, _clip_config, _clip_tokenizer, _image_vae
from transformers import CLIPTextModel, CLIPTextModelWithProjection

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _unet(cross_attention_dim: int, **changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=16,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=cross_attention_dim,
        **changes,
    )


def _sd15_components() -> dict[str, Any]:
    return {
        "vae": _image_vae(),
        "text_encoder": CLIPTextModel(_clip_config()),
        "tokenizer": _clip_tokenizer(),
        "unet": _unet(CLIP_DIM),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **STABLE_DIFFUSION),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _sdxl_components() -> dict[str, Any]:
    size_conditioning = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": CLIP_DIM + 6 * 8,
    }
    return {
        "vae": _image_vae(),
        "text_encoder": CLIPTextModel(_clip_config()),
        "tokenizer": _clip_tokenizer(),
        "text_encoder_2": CLIPTextModelWithProjection(_clip_config()),
        "tokenizer_2": _clip_tokenizer(),
        "unet": _unet(2 * CLIP_DIM, **size_conditioning),
        "scheduler": EulerDiscreteScheduler(timestep_spacing="leading", **STABLE_DIFFUSION),
        "add_watermarker": False,
    }


def _dit_components() -> dict[str, Any]:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,  # the noise and its variance
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_elementwise_affine=False,
    )
    return {"transformer": transformer, "vae": _image_vae(), "scheduler": DDIMScheduler(clip_sample=False)}


DIFFUSION = {
    "sd15": lambda: _build(StableDiffusionPipeline, _sd15_components, 0),
    "sdxl": lambda: _build(StableDiffusionXLPipeline, _sdxl_components, 0),
    "dit": lambda: _build(DiTPipeline, _dit_components, 0),
}


def diffusion_call(name: str, **overrides: Any) -> dict[str, Any]:
    """Arguments of a small 4-step call of ``DIFFUSION[name]()``."""
    kwargs = {"num_inference_steps": 4, "generator": torch.Generator("cpu").manual_seed(0)}
    if name == "dit":
        return kwargs | {"class_labels": [1], "output_type": "np"} | overrides
    prompt = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "height": 32, "width": 32, "output_type": "latent"}
    return kwargs | prompt | overrides
