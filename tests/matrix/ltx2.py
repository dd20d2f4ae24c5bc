"""LTX-2: audio latents step with a deep copy of the scheduler, or with an ``audio_scheduler`` of their own."""

from typing import Any

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2ConditionPipeline,
    LTX2DFRPipeline,
    LTX2DFRTemporalRefinePipeline,
    LTX2HDRPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXEulerAncestralRFScheduler,
)
from diffusers.pipelines.ltx2 import LTX2Vocoder
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_DIM
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from .checks import CHECKS
from .clips import clip
from .inputs import features, picture, small
from .registry import Limit, Tiny, assemble, tiny
from .texts import LM, lm_tokenizer

CHANNELS = 4
AUDIO_CHANNELS = 2
MEL_BINS = 8  # after compression by 4: 2 bins
MODEL: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "audio_in_channels": AUDIO_CHANNELS * 2,
    "audio_out_channels": AUDIO_CHANNELS * 2,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "num_layers": 2,
    "caption_channels": T5_DIM,
    "rope_double_precision": False,
}


def gemma3() -> Gemma3ForConditionalGeneration:
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = Gemma3TextConfig(**LM | {"num_hidden_layers": 2}, sliding_window=32)
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


def ltx2_connectors() -> LTX2TextConnectors:
    heads: dict[str, Any] = {
        f"{name}_connector_{key}": value
        for name in ("video", "audio")
        for key, value in {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "num_layers": 1,
            "num_learnable_registers": None,
        }.items()
    }
    return LTX2TextConnectors(
        caption_channels=T5_DIM, text_proj_in_factor=3, connector_rope_base_seq_len=32, rope_double_precision=False, **heads
    )


def ltx2_vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        down_block_types=("LTX2VideoDownBlock3D",),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
    )


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def components(**more: Any) -> dict[str, Any]:
    return {
        "transformer": LTX2VideoTransformer3DModel(**MODEL),
        "vae": ltx2_vae(),
        "audio_vae": AutoencoderKLLTX2Audio(
            base_channels=4,
            latent_channels=AUDIO_CHANNELS,
            ch_mult=(1,),
            num_res_blocks=1,
            resolution=32,
            mel_bins=MEL_BINS,
        ),
        "vocoder": LTX2Vocoder(
            in_channels=2 * MEL_BINS,
            hidden_channels=32,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
        "connectors": ltx2_connectors(),
        "text_encoder": gemma3(),
        "tokenizer": lm_tokenizer(padding_side="left"),
        "scheduler": _scheduler(),
    } | more


def _call(**more: Any) -> dict[str, Any]:
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "max_sequence_length": 16}
    return small(**texts, num_frames=5, frame_rate=25.0, stg_scale=0.0, **more)


def _call_with_audio(**more: Any) -> dict[str, Any]:
    return _call(audio_stg_scale=0.0) | more


@tiny(LTX2Pipeline)
def ltx2() -> Tiny:
    return Tiny(assemble(LTX2Pipeline, components), _call_with_audio)


@tiny(LTX2ImageToVideoPipeline)
def ltx2_image_to_video() -> Tiny:
    return Tiny(assemble(LTX2ImageToVideoPipeline, components), lambda: _call_with_audio(image=picture(32), image_crf=0))


@tiny(LTX2ConditionPipeline)
def ltx2_condition() -> Tiny:
    """The audio scheduler is a component of its own here."""
    pipe = assemble(LTX2ConditionPipeline, lambda: components(audio_scheduler=_scheduler()))
    return Tiny(pipe, lambda: _call_with_audio(conditions=LTX2VideoCondition(frames=picture(32), strength=0.5, crf=0)))


@tiny(LTX2InContextPipeline)
def ltx2_in_context() -> Tiny:
    """The reference clip's tokens are part of the latents, denoised to themselves."""
    pipe = assemble(LTX2InContextPipeline, components)
    return Tiny(pipe, lambda: _call_with_audio(reference_conditions=LTX2ReferenceCondition(frames=clip(5, 32))))


@tiny(LTX2HDRPipeline)
def ltx2_hdr() -> Tiny:
    pipe = assemble(LTX2HDRPipeline, components)
    return Tiny(pipe, lambda: _call(reference_conditions=LTX2HDRReferenceCondition(frames=clip(5, 32))))


UNKNOWN_TO_DFR = ("negative_prompt", "num_inference_steps", "stg_scale")


@tiny(LTX2DFRPipeline)
def ltx2_dfr() -> Tiny:
    def with_keyframes() -> dict[str, Any]:
        return components(
            transformer=LTX2VideoTransformer3DModel(use_keyframes_abs_pos_embedding=True, **MODEL),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )

    def call() -> dict[str, Any]:
        arguments = _call(sigmas=[1.0, 0.9, 0.7, 0.4])
        return {name: value for name, value in arguments.items() if name not in UNKNOWN_TO_DFR}

    return Tiny(assemble(LTX2DFRPipeline, with_keyframes), call)


@tiny(LTX2DFRTemporalRefinePipeline)
def ltx2_dfr_temporal_refine() -> Tiny:
    """Runs on its own scheduler, which adds noise at every step, and looks for that scheduler by its class."""

    def refining() -> dict[str, Any]:
        made = components(
            transformer=LTX2VideoTransformer3DModel(use_keyframes_abs_pos_embedding=True, **MODEL),
            scheduler=LTXEulerAncestralRFScheduler(),
        )
        upsampler = LTX2LatentUpsamplerModel(
            in_channels=CHANNELS, mid_channels=32, num_blocks_per_stage=1, spatial_upsample=False, temporal_upsample=True
        )
        return made | {"temporal_latent_upsampler": upsampler}

    def call() -> dict[str, Any]:
        given = {
            "latents": features(1, CHANNELS, 3, 16, 16),
            "keyframes_latents": features(1, CHANNELS, 2, 16, 16, seed=3),
            "keyframe_positions": [2, 4],
            "audio_latents": features(1, AUDIO_CHANNELS, 8, 2, seed=4),
        }
        return {name: value for name, value in _call(**given).items() if name not in UNKNOWN_TO_DFR}

    refused = Limit(
        "a refining pass that needs noise at every step: the pipeline refuses other schedulers", "Temporal refine needs"
    )
    return Tiny(assemble(LTX2DFRTemporalRefinePipeline, refining), call, limits=dict.fromkeys(CHECKS, refused))
