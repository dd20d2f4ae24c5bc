"""HunyuanVideo 1.0 and 1.5: guidance as an embedding, slices of the latents, sections that are runs of their own."""

import functools
import itertools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tiny_pipelines import CLIP_DIM, NEGATIVE_PROMPT, PROMPT, T5_DIM, _clip_config, _clip_tokenizer
from transformers import (
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from .clips import clip_image_processor, siglip_image_processor, siglip_vision
from .inputs import call, features, picture, small
from .parts import no_text_encoder
from .registry import Tiny, assemble, register, tiny
from .texts import LM, lm_tokenizer

CHANNELS = 4
IMAGE_TOKENS = 16
MODEL: dict[str, Any] = {
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 1,
    "patch_size_t": 1,
    "text_embed_dim": T5_DIM,
    "pooled_projection_dim": CLIP_DIM,
    "rope_axes_dim": (2, 4, 4),
}
MODEL_15: dict[str, Any] = {
    "in_channels": 2 * CHANNELS + 1,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": T5_DIM,
    "text_embed_2_dim": T5_DIM,
    "image_embed_dim": 8,
    "rope_axes_dim": (2, 4, 4),
    "target_size": 16,
}


def _components(transformer: Any, **more: Any) -> dict[str, Any]:
    return {
        "transformer": transformer,
        "vae": AutoencoderKLHunyuanVideo(
            latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder": LlamaModel(LlamaConfig(**LM)),
        "tokenizer": lm_tokenizer(),
        "text_encoder_2": CLIPTextModel(_clip_config()),
        "tokenizer_2": _clip_tokenizer(),
    } | more


def _call(**more: Any) -> dict[str, Any]:
    text = {"prompt": PROMPT, "prompt_template": {"template": "{}", "crop_start": 0}, "max_sequence_length": 16}
    return small(**text | {"height": 16, "width": 16, "num_frames": 9} | more)


@tiny(HunyuanVideoPipeline)
def hunyuan_video() -> Tiny:
    pipe = assemble(HunyuanVideoPipeline, lambda: _components(HunyuanVideoTransformer3DModel(in_channels=CHANNELS, **MODEL)))
    return Tiny(pipe, _call)


@tiny(HunyuanVideoImageToVideoPipeline)
def hunyuan_video_image_to_video() -> Tiny:
    """``token_replace``: the first latent frame is the given one, the others are stepped."""
    tokens = ("<image>", "<|end_header_id|>")

    def components() -> dict[str, Any]:
        tokenizer = lm_tokenizer(tokens)
        vision = CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=2,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**LM),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            pad_token_id=tokenizer.pad_token_id,
        )
        return _components(
            HunyuanVideoTransformer3DModel(
                in_channels=CHANNELS, image_condition_type="token_replace", guidance_embeds=True, **MODEL
            ),
            text_encoder=LlavaForConditionalGeneration(config),
            tokenizer=tokenizer,
            image_processor=clip_image_processor(),
        )

    marks = "<|end_header_id|>"
    template = {
        "template": f"<image>{marks}{marks}{{}}{marks}",
        "crop_start": 3,
        "image_emb_len": IMAGE_TOKENS,
        "image_emb_start": 0,
        "image_emb_end": IMAGE_TOKENS,
    }
    return Tiny(
        assemble(HunyuanVideoImageToVideoPipeline, components),
        lambda: _call(image=picture(16), prompt_template=template, max_sequence_length=64),
    )


@tiny(HunyuanSkyreelsImageToVideoPipeline)
def hunyuan_skyreels_image_to_video() -> Tiny:
    pipe = assemble(
        HunyuanSkyreelsImageToVideoPipeline,
        lambda: _components(HunyuanVideoTransformer3DModel(in_channels=2 * CHANNELS, **MODEL)),
    )
    return Tiny(pipe, lambda: _call(image=picture(16), negative_prompt=NEGATIVE_PROMPT, true_cfg_scale=2.0))


@tiny(HunyuanVideoFramepackPipeline)
def hunyuan_video_framepack() -> Tiny:
    """Two sections, each with a schedule of its own."""
    pipe = assemble(
        HunyuanVideoFramepackPipeline,
        lambda: _components(
            HunyuanVideoFramepackTransformer3DModel(
                in_channels=CHANNELS,
                has_image_proj=True,
                image_proj_dim=8,
                has_clean_x_embedder=True,
                **MODEL | {"patch_size": 2},
            ),
            image_encoder=siglip_vision(8),
            feature_extractor=siglip_image_processor(),
        ),
    )
    return Tiny(pipe, lambda: _call(image=picture(32), height=32, width=32, latent_window_size=2, num_frames=9))


def components_15(task: str, **more: Any) -> dict[str, Any]:
    """Text features are given, so the encoders of 1.5, which read 1364 tokens, are absent."""
    return no_text_encoder("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2") | {
        "transformer": HunyuanVideo15Transformer3DModel(task_type=task, **MODEL_15),
        "vae": AutoencoderKLHunyuanVideo15(latent_channels=CHANNELS, block_out_channels=(16,) * 5, layers_per_block=1),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
        **more,
    }


def with_picture_15() -> dict[str, Any]:
    return components_15("i2v", image_encoder=siglip_vision(8), feature_extractor=siglip_image_processor())


text_15 = {
    f"{sign}prompt_embeds{which}": functools.partial(features, 1, 6, T5_DIM, seed=seed)
    for seed, (sign, which) in enumerate(itertools.product(("", "negative_"), ("", "_2")), start=2)
} | {
    f"{sign}prompt_embeds_mask{which}": functools.partial(torch.ones, 1, 6)
    for sign, which in itertools.product(("", "negative_"), ("", "_2"))
}

register(HunyuanVideo15Pipeline, lambda: components_15("t2v"), call(**text_15, num_frames=5))


@tiny(HunyuanVideo15ImageToVideoPipeline)
def hunyuan_video_15_image_to_video() -> Tiny:
    """The size is that of the picture."""
    arguments = call(**text_15, num_frames=5, image=picture)
    pipe = assemble(HunyuanVideo15ImageToVideoPipeline, with_picture_15)
    return Tiny(pipe, lambda: {n: v for n, v in arguments().items() if n not in ("height", "width")})
