"""FLUX.2 and its Klein versions. Text features are given, so the Mistral and Qwen encoders are absent."""

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)

from .inputs import call, image, mask, picture, text_features
from .parts import dynamic_schedule, no_text_encoder
from .registry import register

TEXT_DIM = 16


def tiny_flux2_vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
    )


def components() -> dict[str, Any]:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM,
        timestep_guidance_channels=256,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return {"scheduler": dynamic_schedule(), "vae": tiny_flux2_vae(), "transformer": transformer, **no_text_encoder()}


guided = text_features(1, 8, TEXT_DIM)
text = {"prompt_embeds": guided["prompt_embeds"]}

register(Flux2Pipeline, components, call(**text, image=lambda: picture(64)))
register(Flux2KleinPipeline, components, call(**guided, image=lambda: picture(64)))
register(Flux2KleinKVPipeline, components, call(**text, image=lambda: picture(64)))
register(Flux2KleinInpaintPipeline, components, call(**guided, image=image, mask_image=mask))
