"""Chroma: text, image and inpainting pipelines with a T5 encoder."""

from typing import Any

from diffusers import ChromaImg2ImgPipeline, ChromaInpaintPipeline, ChromaPipeline, ChromaTransformer2DModel
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_DIM, _t5_encoder, _t5_tokenizer

from .inputs import call, image, mask
from .parts import dynamic_schedule, image_vae
from .registry import register


def components() -> dict[str, Any]:
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_DIM,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    transformer.register_to_config(guidance_embeds=False)  # the inpainting pipeline reads it, the model does not know it
    return {
        "scheduler": dynamic_schedule(),
        "vae": image_vae(),
        "text_encoder": _t5_encoder(),
        "tokenizer": _t5_tokenizer(),
        "transformer": transformer,
    }


text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "max_sequence_length": 32}
started = {"image": image, "strength": 0.75}

register(ChromaPipeline, components, call(**text))
register(ChromaImg2ImgPipeline, components, call(**text, **started))
register(ChromaInpaintPipeline, components, call(**text, **started, mask_image=mask))
