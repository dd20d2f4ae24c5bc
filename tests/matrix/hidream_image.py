"""HiDream-I1. Text features are given, so its CLIP, T5 and Llama encoders are absent.

The pipeline always paints 128 x 128 latents, so this call is without guidance, and short.
"""

from typing import Any

from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

from .inputs import call, features
from .parts import dynamic_schedule, image_vae, no_text_encoder
from .registry import register

T5_DIM, LLAMA_DIM, POOLED_DIM = 16, 16, 32


def components() -> dict[str, Any]:
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[T5_DIM, LLAMA_DIM],
        text_emb_dim=POOLED_DIM,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    )
    encoders = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3", "_4")]
    return {
        "scheduler": dynamic_schedule(),
        "vae": image_vae(),
        "transformer": transformer,
        **no_text_encoder(*encoders),
    }


text = {
    f"{sign}{name}": lambda shape=shape, seed=seed: features(*shape, seed=seed)
    for sign, seed in (("", 2), ("negative_", 3))
    for name, shape in (
        ("prompt_embeds_t5", (1, 8, T5_DIM)),
        ("prompt_embeds_llama3", (2, 1, 8, LLAMA_DIM)),
        ("pooled_prompt_embeds", (1, POOLED_DIM)),
    )
}

register(HiDreamImagePipeline, components, call(**text, guidance_scale=1.0, num_inference_steps=3))
