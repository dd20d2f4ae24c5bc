"""DreamLite and its mobile version, from text; the only flow pipelines with a U-Net. Both read a Qwen3-VL encoder."""

from typing import Any

from diffusers import AutoencoderTiny, DreamLiteMobilePipeline, DreamLitePipeline, DreamLiteUNetModel
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT

from .inputs import call
from .parts import dynamic_schedule, qwen3_vl
from .registry import register
from .texts import LM, lm_tokenizer


def components() -> dict[str, Any]:
    unet = DreamLiteUNetModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=LM["hidden_size"],
        attention_head_dim=2,
        use_linear_projection=True,
        addition_embed_type="time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return {
        "scheduler": dynamic_schedule(),
        "text_encoder": qwen3_vl(),
        "tokenizer": lm_tokenizer(),
        "processor": None,
        "vae": vae,
        "unet": unet,
    }


register(DreamLitePipeline, components, call(prompt=PROMPT, negative_prompt=NEGATIVE_PROMPT))
register(DreamLiteMobilePipeline, components, call(prompt=PROMPT))
