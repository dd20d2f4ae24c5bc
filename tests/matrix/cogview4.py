"""CogView 4, with and without a control image. Text features are given, so the GLM encoder is absent."""

from typing import Any

from diffusers import CogView4ControlPipeline, CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler

from .inputs import call, image, text_features
from .parts import image_vae, no_text_encoder
from .registry import register

TEXT_DIM = 16


def components(in_channels: int = 4) -> dict[str, Any]:
    transformer = CogView4Transformer2DModel(
        in_channels=in_channels,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=16,
        condition_dim=4,
        rope_axes_dim=(32, 32),
        sample_size=16,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
    )
    return {"scheduler": scheduler, "vae": image_vae(), "transformer": transformer, **no_text_encoder()}


text = text_features(1, 16, TEXT_DIM)

register(CogView4Pipeline, components, call(**text))
register(CogView4ControlPipeline, lambda: components(8), call(**text, control_image=lambda: image(seed=3)))
