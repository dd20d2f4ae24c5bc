"""JoyImage Edit and Edit Plus. Edit is given text features, Edit Plus reads a Qwen3-VL encoder.

The pipelines enlarge their pictures to a million pixels; the autoencoder here shrinks them 32 times.
"""

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    JoyImageEditPipeline,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
)
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT

from .inputs import call, picture, text_features
from .parts import no_text_encoder, picture_processor, qwen3_vl, qwen_tokenizer
from .registry import register
from .texts import LM

TEXT_DIM = LM["hidden_size"]


def components(transformer_class: Any) -> dict[str, Any]:
    vae = AutoencoderKLWan(
        base_dim=1,
        dim_mult=[1] * 6,
        num_res_blocks=1,
        temperal_downsample=[False] * 5,
        scale_factor_spatial=32,
        scale_factor_temporal=1,
    )
    transformer = transformer_class(
        hidden_size=32, num_attention_heads=2, text_dim=TEXT_DIM, num_layers=1, rope_dim_list=[4, 6, 6]
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=4.0),
        "vae": vae,
        "transformer": transformer,
        **no_text_encoder("text_encoder", "tokenizer", "processor"),
    }


def plus() -> dict[str, Any]:
    encoder = {"text_encoder": qwen3_vl(), "tokenizer": qwen_tokenizer(), "processor": picture_processor()}
    return components(JoyImageEditPlusTransformer3DModel) | encoder


plus_text = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT}
text = text_features(1, 8, TEXT_DIM, mask="prompt_embeds_mask") | {"height": 128, "width": 128}

register(JoyImageEditPipeline, lambda: components(JoyImageEditTransformer3DModel), call(**text, image=picture))
register(JoyImageEditPlusPipeline, plus, call(**plus_text, height=128, width=128, images=lambda: [[picture()]]))
