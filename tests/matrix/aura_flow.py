"""AuraFlow with a UMT5 encoder."""

from typing import Any

from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_CONFIG, T5_DIM, _t5_tokenizer
from transformers import UMT5Config, UMT5EncoderModel

from .inputs import call
from .parts import image_vae
from .registry import register


def components() -> dict[str, Any]:
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=T5_DIM,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.73),
        "vae": image_vae(),
        "text_encoder": UMT5EncoderModel(UMT5Config(**T5_CONFIG)),
        "tokenizer": _t5_tokenizer(),
        "transformer": transformer,
    }


register(
    AuraFlowPipeline,
    components,
    call(prompt=PROMPT, negative_prompt=NEGATIVE_PROMPT, max_sequence_length=32),
)
