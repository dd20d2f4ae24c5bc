"""Real diffusers pipelines with tiny seeded random weights, built in memory: no download, no hub, no files read.

Each ``tiny_*`` function returns a CPU fp32 pipeline in eval mode and leaves the global random state alone.
``call_kwargs(name)`` gives the arguments of a small 4-step call, with a fresh generator every time:

    pipe = TINY["sd3"]()
    latents = pipe(**call_kwargs("sd3")).images
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

CLIP_DIM = 16
T5_DIM = 32
VOCAB_SIZE = 300  # 256 bytes and a few special tokens
T5_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": T5_DIM,
    "d_kv": 8,
    "d_ff": 2 * T5_DIM,
    "num_layers": 2,
    "num_heads": 4,
}

PROMPT = "a red fox in the snow"
NEGATIVE_PROMPT = "blurry"


def _tokenizer(model_max_length: int, pad: str, eos: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (no merges), so that any two prompts get different tokens."""
    special = list(dict.fromkeys(token for token in (pad, eos, bos) if token))
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}" if bos else f"$A {eos}", special_tokens=[(token, vocab[token]) for token in special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=model_max_length, pad_token=pad, eos_token=eos, bos_token=bos
    )


def _clip_tokenizer() -> PreTrainedTokenizerFast:
    return _tokenizer(77, pad="<|endoftext|>", eos="<|endoftext|>", bos="<|startoftext|>")


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=CLIP_DIM,
        intermediate_size=2 * CLIP_DIM,
        projection_dim=CLIP_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=1,
    )


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    return _tokenizer(512, pad="<pad>", eos="</s>")


def _t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(T5Config(**T5_CONFIG))


def _image_vae() -> AutoencoderKL:
    """An image autoencoder with 4 latent channels that halves the height and the width."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def _sd3_components() -> dict[str, Any]:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=T5_DIM,  # the features of the two CLIP encoders, side by side, are as wide
        pooled_projection_dim=2 * CLIP_DIM,
        pos_embed_max_size=16,
    )
    return {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": _image_vae(),
        "text_encoder": CLIPTextModelWithProjection(_clip_config()),
        "tokenizer": _clip_tokenizer(),
        "text_encoder_2": CLIPTextModelWithProjection(_clip_config()),
        "tokenizer_2": _clip_tokenizer(),
        "text_encoder_3": _t5_encoder(),
        "tokenizer_3": _t5_tokenizer(),
    }


def _flux_components() -> dict[str, Any]:
    transformer = FluxTransformer2DModel(
        in_channels=16,  # 4 latent channels in 2x2 patches
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_DIM,
        pooled_projection_dim=CLIP_DIM,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return {
        "transformer": transformer,
        "scheduler": scheduler,
        "vae": _image_vae(),
        "text_encoder": CLIPTextModel(_clip_config()),
        "tokenizer": _clip_tokenizer(),
        "text_encoder_2": _t5_encoder(),
        "tokenizer_2": _t5_tokenizer(),
    }


def _ltx_components() -> dict[str, Any]:
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=T5_DIM,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return {
        "transformer": transformer,
        "scheduler": scheduler,
        "vae": vae,
        "text_encoder": _t5_encoder(),
        "tokenizer": _t5_tokenizer(),
    }


def _wan_components() -> dict[str, Any]:
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=T5_DIM,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return {
        "transformer": transformer,
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "text_encoder": UMT5EncoderModel(UMT5Config(**T5_CONFIG)),
        "tokenizer": _t5_tokenizer(),
    }


def _build(pipeline_class: Callable[..., Any], components: Callable[[], dict[str, Any]], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = pipeline_class(**components())
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd3(seed: int = 0) -> StableDiffusion3Pipeline:
    """SD3 in small: two CLIP encoders, a T5 encoder and a static shift of 3."""
    return _build(StableDiffusion3Pipeline, _sd3_components, seed)


def tiny_sd3_img2img(seed: int = 0) -> StableDiffusion3Img2ImgPipeline:
    """SD3 in small with its image-to-image pipeline; same weights as ``tiny_sd3`` for the same seed."""
    return _build(StableDiffusion3Img2ImgPipeline, _sd3_components, seed)


def tiny_flux(seed: int = 0) -> FluxPipeline:
    """FLUX.1-dev in small: dynamic shifting and a guidance embedding."""
    return _build(FluxPipeline, _flux_components, seed)


def tiny_ltx(seed: int = 0) -> LTXPipeline:
    """LTX-Video in small: dynamic shifting with a terminal shift."""
    return _build(LTXPipeline, _ltx_components, seed)


def tiny_wan(seed: int = 0) -> WanPipeline:
    """Wan 2.1 in small: the multistep scheduler UniPC on flow sigmas."""
    return _build(WanPipeline, _wan_components, seed)


TINY: dict[str, Callable[..., Any]] = {
    "sd3": tiny_sd3,
    "sd3_img2img": tiny_sd3_img2img,
    "flux": tiny_flux,
    "ltx": tiny_ltx,
    "wan": tiny_wan,
}


def call_kwargs(name: str, seed: int = 0, **overrides: Any) -> dict[str, Any]:
    """Arguments of a small 4-step call of ``TINY[name]()``; ``overrides`` replace or add arguments."""
    kwargs: dict[str, Any] = {
        "prompt": PROMPT,
        "height": 32,
        "width": 32,
        "num_inference_steps": 4,
        "guidance_scale": 3.5,
        "max_sequence_length": 32,
        "output_type": "latent",
        "generator": torch.Generator("cpu").manual_seed(seed),
    }
    if name != "flux":  # FLUX.1-dev embeds its guidance scale
        kwargs["negative_prompt"] = NEGATIVE_PROMPT
    if name == "sd3_img2img":
        kwargs["image"] = torch.rand(1, 3, 32, 32, generator=torch.Generator("cpu").manual_seed(seed + 1))
        kwargs["strength"] = 0.75
    if name in ("ltx", "wan"):
        kwargs["num_frames"] = 5
    return kwargs | overrides
