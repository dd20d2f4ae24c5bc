"""ACE-Step, LongCat-AudioDiT (counts upwards; its scheduler is no registered component) and Stable Audio 3."""

from typing import Any

import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    AutoencoderSAME,
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    StableAudio3AudioToAudioPipeline,
    StableAudio3DiTModel,
    StableAudio3InpaintPipeline,
    StableAudio3Pipeline,
)
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_CONFIG, T5_DIM, _t5_tokenizer
from transformers import Qwen3Config, Qwen3Model, UMT5Config, UMT5EncoderModel

from .clips import sound
from .inputs import features
from .parts import no_text_encoder
from .registry import Limit, generator, register
from .texts import LM, lm_tokenizer

SHARED: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}


def ace_step() -> dict[str, Any]:
    attention = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return {
        "transformer": AceStepTransformer1DModel(
            **attention, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, sliding_window=16
        ),
        "condition_encoder": AceStepConditionEncoder(
            **attention,
            text_hidden_dim=T5_DIM,
            timbre_hidden_dim=8,
            num_lyric_encoder_hidden_layers=2,
            num_timbre_encoder_hidden_layers=2,
        ),
        "vae": AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            channel_multiples=[1, 2],
            decoder_channels=3,
            decoder_input_channels=8,
            sampling_rate=16,
        ),
        "text_encoder": Qwen3Model(Qwen3Config(**LM)),
        "tokenizer": lm_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    }


def ace_step_call() -> dict[str, Any]:
    return SHARED | {"prompt": PROMPT, "lyrics": "la la", "audio_duration": 1.0, "generator": generator()}


register(AceStepPipeline, ace_step, ace_step_call)


def longcat() -> dict[str, Any]:
    transformer = LongCatAudioDiTTransformer(dit_dim=32, dit_depth=2, dit_heads=4, dit_text_dim=T5_DIM, latent_dim=8)
    for parameter in transformer.parameters():
        if not parameter.any():  # untrained, its last layer gives no velocity at all
            torch.nn.init.normal_(parameter, std=0.1)
    return {
        "transformer": transformer,
        "vae": LongCatAudioDiTVae(
            channels=8,
            c_mults=[1, 2],
            strides=[2],
            latent_dim=8,
            encoder_latent_dim=16,
            downsampling_ratio=2,
            sample_rate=16,
        ),
        "text_encoder": UMT5EncoderModel(UMT5Config(**T5_CONFIG)),
        "tokenizer": _t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    }


def longcat_call() -> dict[str, Any]:
    return SHARED | {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "audio_duration_s": 2.0,
        "generator": generator(),
    }


register(
    LongCatAudioDiTPipeline,
    longcat,
    longcat_call,
    limits={
        "saved": Limit(
            "diffusers counts its scheduler as optional and does not save it; a loaded pipeline gets a new stock one",
            error="came back as",
        )
    },
)


def stable_audio() -> dict[str, Any]:
    return no_text_encoder() | {
        "transformer": StableAudio3DiTModel(
            io_channels=4,
            embed_dim=32,
            depth=2,
            num_heads=4,
            cond_token_dim=16,
            global_cond_dim=16,
            local_add_cond_dim=5,
            timestep_features_dim=8,
            num_memory_tokens=2,
        ),
        "vae": AutoencoderSAME(
            patch_size=4,
            encoder_channels=8,
            encoder_c_mults=[1],
            encoder_strides=[2],
            encoder_transformer_depths=[1],
            latent_dim=4,
            dim_heads=8,
            sampling_rate=16,
        ),
        "duration_embedder": StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8),
        "scheduler": FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
    }


def stable_audio_call(**more: Any) -> dict[str, Any]:
    text = {"prompt_embeds": features(1, 6, 16), "encoder_attention_mask": torch.ones(1, 6, dtype=torch.long)}
    return SHARED | text | {"duration": 4.0, "generator": generator()} | more


register(StableAudio3Pipeline, stable_audio, stable_audio_call)
register(StableAudio3AudioToAudioPipeline, stable_audio, lambda: stable_audio_call(audio=sound(64), init_noise_level=0.8))
register(
    StableAudio3InpaintPipeline,
    stable_audio,
    lambda: stable_audio_call(audio=sound(64), mask_start_seconds=1.0, mask_end_seconds=3.0),
)
