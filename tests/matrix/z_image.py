"""Z-Image. Text features are given, so the text encoder is absent; Omni is called without pictures, so its SigLIP is too."""

from typing import Any

from diffusers import (
    ZImageControlNetInpaintPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImageOmniPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from .inputs import call, features, image, mask
from .parts import dynamic_schedule, image_vae, no_text_encoder
from .registry import register

TEXT_DIM, CHANNELS = 16, 16
SIZE = {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "n_refiner_layers": 1}


def components() -> dict[str, Any]:
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS, n_layers=2, cap_feat_dim=TEXT_DIM, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32], **SIZE
    )
    return {
        "scheduler": dynamic_schedule(),
        "vae": image_vae(latent_channels=CHANNELS),
        "transformer": transformer,
        **no_text_encoder(),
    }


def with_controlnet(control_in_dim: int = CHANNELS) -> dict[str, Any]:
    controlnet = ZImageControlNetModel(
        control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=control_in_dim, **SIZE
    )
    return components() | {"controlnet": controlnet}


text = {
    "prompt_embeds": lambda: [features(8, TEXT_DIM)],
    "negative_prompt_embeds": lambda: [features(8, TEXT_DIM, seed=3)],
}
parts = {  # Omni's text comes in pieces between its pictures, here none
    "prompt_embeds": lambda: [[features(8, TEXT_DIM)]],
    "negative_prompt_embeds": lambda: [[features(8, TEXT_DIM, seed=3)]],
}
started = {"image": image, "strength": 0.75}
controlled = {"control_image": lambda: image(seed=3)}

register(ZImagePipeline, components, call(**text))
register(ZImageImg2ImgPipeline, components, call(**text, **started))
register(ZImageInpaintPipeline, components, call(**text, **started, mask_image=mask))
register(ZImageControlNetPipeline, with_controlnet, call(**text, **controlled))
register(
    ZImageControlNetInpaintPipeline,
    lambda: with_controlnet(2 * CHANNELS + 1),
    call(**text, **controlled, image=image, mask_image=mask),
)
register(ZImageOmniPipeline, lambda: components() | {"siglip": None, "siglip_processor": None}, call(**parts))
