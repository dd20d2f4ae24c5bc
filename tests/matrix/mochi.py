"""Mochi: the noise level counts upwards (``invert_sigmas``)."""

from typing import Any

from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_DIM, _t5_encoder, _t5_tokenizer

from .inputs import call
from .registry import register


def components() -> dict[str, Any]:
    return {
        "transformer": MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            text_embed_dim=T5_DIM,
            time_embed_dim=4,
            max_sequence_length=16,
        ),
        "vae": AutoencoderKLMochi(
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        "text_encoder": _t5_encoder(),
        "tokenizer": _t5_tokenizer(),
    }


register(
    MochiPipeline,
    components,
    call(prompt=PROMPT, negative_prompt=NEGATIVE_PROMPT, num_frames=7, max_sequence_length=16),
)
