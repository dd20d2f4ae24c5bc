"""PRX in latents and in pixels. Text features are given, so the T5-Gemma and Qwen encoders are absent."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXPixelPipeline, PRXTransformer2DModel

from .inputs import call, text_features
from .parts import image_vae, no_text_encoder
from .registry import register

TEXT_DIM = 16


def components(channels: int = 4) -> dict[str, Any]:
    transformer = PRXTransformer2DModel(
        in_channels=channels,
        patch_size=2,
        context_in_dim=TEXT_DIM,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
    )
    return {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0), "transformer": transformer, **no_text_encoder()}


text = text_features(1, 8, TEXT_DIM, mask="prompt_attention_mask") | {"use_resolution_binning": False}

register(PRXPipeline, lambda: components() | {"vae": image_vae()}, call(**text))
register(PRXPixelPipeline, lambda: components(channels=3), call(**text, output_type="pt"))
