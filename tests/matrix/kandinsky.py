"""Kandinsky 5 and 6: channels last; slices of the latents; video and audio; super-resolution in tiles. Text as features."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5I2IPipeline,
    Kandinsky5I2VPipeline,
    Kandinsky5T2IPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    Kandinsky6SRPipeline,
    Kandinsky6SRTransformer3DModel,
    Kandinsky6SRVAE,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    MMAudioVAE,
    MMAudioVocoder,
)

from .clips import clip
from .inputs import features, picture, small
from .parts import image_vae, no_text_encoder
from .registry import generator, register

CHANNELS, WIDTH = 4, 16
MODEL: dict[str, Any] = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "in_text_dim": 8,
    "in_text_dim2": 8,
    "time_dim": 16,
    "model_dim": WIDTH,
    "ff_dim": 2 * WIDTH,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
    "axes_dims": (4, 6, 6),
}
NO_TEXT = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def video_vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def components_5(vae: Any, visual_cond: bool = False) -> dict[str, Any]:
    return no_text_encoder(*NO_TEXT) | {
        "transformer": Kandinsky5Transformer3DModel(visual_cond=visual_cond, **MODEL),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def eighth_vae() -> AutoencoderKL:
    """The image pipelines take it for granted that the latents are 8 times smaller."""
    return image_vae(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
    )


def call_5(**more: Any) -> Any:
    def text(sign: str, seed: int) -> dict[str, Any]:
        return {
            f"{sign}prompt_embeds_qwen": features(1, 6, 8, seed=seed),
            f"{sign}prompt_embeds_clip": features(1, 8, seed=seed + 1),
            f"{sign}prompt_cu_seqlens": torch.tensor([0, 6], dtype=torch.int32),
        }

    return lambda: small(**text("", 2), **text("negative_", 4), **{n: m() if callable(m) else m for n, m in more.items()})


register(Kandinsky5T2VPipeline, lambda: components_5(video_vae()), call_5(num_frames=5))
register(Kandinsky5I2VPipeline, lambda: components_5(video_vae(), visual_cond=True), call_5(image=picture, num_frames=21))
# these two draw 1024 x 1024 or as many pixels in other shapes: 4096 tokens
register(Kandinsky5T2IPipeline, lambda: components_5(eighth_vae()), call_5(num_inference_steps=2, guidance_scale=1.0))
register(
    Kandinsky5I2IPipeline,
    lambda: components_5(eighth_vae(), visual_cond=True),
    call_5(image=picture, num_inference_steps=2, guidance_scale=1.0),
)


def components_6() -> dict[str, Any]:
    return no_text_encoder(*NO_TEXT) | {
        "transformer": Kandinsky6Transformer3DModel(
            in_audio_dim=4, out_audio_dim=4, visual_token_type_num_embeddings=2, **MODEL
        ),
        "vae": video_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "audio_vae": MMAudioVAE(mel_bins=8, latent_channels=4, hidden_channels=8, n_fft=64, hop_length=16, sample_rate=800),
        "vocoder": MMAudioVocoder(
            num_mels=8,
            upsample_initial_channel=8,
            upsample_rates=(4, 4),
            upsample_kernel_sizes=(8, 8),
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1, 3),),
        ),
    }


def call_6() -> dict[str, Any]:
    def text(sign: str, seed: int) -> dict[str, Any]:
        return {
            f"{sign}prompt_embeds": features(1, 6, 8, seed=seed),
            f"{sign}pooled_prompt_embeds": features(1, 8, seed=seed + 1),
        }

    return small(**text("", 2), **text("negative_", 4), image=picture(), num_frames=5)


register(Kandinsky6TI2VAPipeline, components_6, call_6)


def components_sr() -> dict[str, Any]:
    return {
        "transformer": Kandinsky6SRTransformer3DModel(
            in_visual_dim=CHANNELS,
            out_visual_dim=CHANNELS,
            time_dim=16,
            model_dim=WIDTH,
            ff_dim=2 * WIDTH,
            num_visual_blocks=1,
            axes_dims=(4, 6, 6),
            tile_sizes=((128, 128),),
        ),
        "vae": Kandinsky6SRVAE(
            latent_channels=CHANNELS,
            encoder_block_out_channels=(8, 8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8, 8),
            layers_per_block=1,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def call_sr() -> dict[str, Any]:
    return {
        "video": clip(1, 64),
        "resolution_scale": 2,
        "num_inference_steps": 4,
        "output_type": "pt",
        "generator": generator(),
    }


register(Kandinsky6SRPipeline, components_sr, call_sr)
