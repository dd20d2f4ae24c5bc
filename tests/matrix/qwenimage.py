"""Qwen-Image and Qwen-Image 2.1. Text features are given, so the vision-language encoders are absent (not so for Layered).

Edit pipelines enlarge their picture to a million pixels; their autoencoder here shrinks it 32 times, to 256 tokens.
"""

from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageControlNetInpaintPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT

from .inputs import call, image, mask, picture, small, text_features
from .parts import dynamic_schedule, no_text_encoder, picture_processor, qwen2_5_vl, qwen_tokenizer, variant
from .registry import register
from .texts import LM

TEXT_DIM, CHANNELS = 16, 8  # not 4: pictures with opacity must not pass for latents
SIZE = {
    "in_channels": 4 * CHANNELS,  # 2x2 patches
    "out_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_DIM,
    "axes_dims_rope": (4, 6, 6),
}


def tiny_qwen_vae(halvings: int = 1, base_dim: int = 4) -> AutoencoderKLQwenImage:
    """``halvings`` of height and width."""
    return AutoencoderKLQwenImage(
        base_dim=base_dim,
        z_dim=CHANNELS,
        dim_mult=[1] * (halvings + 1),
        num_res_blocks=1,
        temperal_downsample=[False] * halvings,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )


def components(**vae: int) -> dict[str, Any]:
    return {
        "scheduler": dynamic_schedule(),
        "vae": tiny_qwen_vae(**vae),
        "transformer": QwenImageTransformer2DModel(**SIZE),
        **no_text_encoder(),
    }


def with_controlnet(extra_channels: int = 0) -> dict[str, Any]:
    controlnet = QwenImageControlNetModel(**SIZE | {"num_layers": 1}, extra_condition_channels=extra_channels)
    return components() | {"controlnet": controlnet}


def editing() -> dict[str, Any]:
    return components(halvings=5, base_dim=1) | {"processor": None}


def layered() -> dict[str, Any]:
    """Pictures have an opacity, and the transformer is told which layer a picture is."""
    read = SIZE | {"joint_attention_dim": LM["hidden_size"]}
    return editing() | {
        "vae": variant(tiny_qwen_vae(halvings=5, base_dim=2), input_channels=4),
        "text_encoder": qwen2_5_vl(),
        "tokenizer": qwen_tokenizer(),
        "transformer": QwenImageTransformer2DModel(**read, use_additional_t_cond=True, use_layer3d_rope=True),
    }


def second() -> dict[str, Any]:
    """Qwen-Image 2.1; its processor is asked for the length of a system prompt at once, so it is there."""
    vae = AutoencoderKLQwenImage21(
        base_dim=2,
        decoder_base_dim=2,
        z_dim=CHANNELS,
        dim_mult=[1] * 5,
        num_res_blocks=1,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    transformer = QwenImage21Transformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=TEXT_DIM,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "scheduler": dynamic_schedule(),
        "vae": vae,
        "text_encoder": None,
        "processor": picture_processor(),
        "transformer": transformer,
    }


text = text_features(1, 8, TEXT_DIM, mask="prompt_embeds_mask")
started = {"image": image, "strength": 0.75}
controlled = {"control_image": lambda: image(seed=3)}
edited = {"image": picture, "height": 128, "width": 128}


def layered_call() -> dict[str, Any]:
    """Pixels, since latents as output end in an error of diffusers."""
    text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT}
    arguments = small(**text, image=picture().convert("RGBA"), layers=1, num_inference_steps=3, output_type="pt")
    del arguments["height"], arguments["width"]
    return arguments


register(QwenImagePipeline, components, call(**text))
register(QwenImageImg2ImgPipeline, components, call(**text, **started))
register(QwenImageInpaintPipeline, components, call(**text, **started, mask_image=mask))
register(QwenImageControlNetPipeline, with_controlnet, call(**text, **controlled))
register(QwenImageControlNetInpaintPipeline, lambda: with_controlnet(4), call(**text, **controlled, control_mask=mask))
register(QwenImageEditPipeline, editing, call(**text, **edited))
register(QwenImageEditPlusPipeline, editing, call(**text, **edited))
register(QwenImageEditInpaintPipeline, editing, call(**text, **edited, strength=0.75, mask_image=lambda: mask(128)))
register(QwenImageLayeredPipeline, layered, layered_call)
register(QwenImage21Pipeline, second, call(**text, true_cfg_scale=2.0, height=64, width=64))
