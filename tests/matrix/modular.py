"""Modular pipelines, of the components that the standard pipelines of the family have. They call no callbacks.

Where those have no text encoder, its block is left out too, and the call brings the features. A block for an optional
component (prompt upsampling, images) takes no part where the call does not ask for it.
"""

import functools
from typing import Any

import torch
from diffusers import (
    AnimaModularPipeline,
    AnimaTextConditioner,
    Cosmos3DistilledModularPipeline,
    Cosmos3OmniModularPipeline,
    CosmosTransformer3DModel,
    ErnieImageModularPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinBaseModularPipeline,
    Flux2KleinModularPipeline,
    Flux2ModularPipeline,
    Flux3DistilledModularPipeline,
    Flux3ModularPipeline,
    Flux3Transformer2DModel,
    FluxKontextModularPipeline,
    FluxModularPipeline,
    HeliosModularPipeline,
    HeliosPyramidDistilledModularPipeline,
    HeliosPyramidModularPipeline,
    HunyuanVideo15ModularPipeline,
    Ideogram4ModularPipeline,
    Krea2ModularPipeline,
    Krea2TurboModularPipeline,
    LTX2ModularPipeline,
    LTX25ModularPipeline,
    LTXModularPipeline,
    MiniMaxMusic3ConditionEncoder,
    MiniMaxMusic3ModularPipeline,
    MiniMaxMusic3Transformer1DModel,
    QwenImage21ModularPipeline,
    QwenImage21TurboModularPipeline,
    QwenImageEditModularPipeline,
    QwenImageEditPlusModularPipeline,
    QwenImageLayeredModularPipeline,
    QwenImageModularPipeline,
    StableDiffusion3ModularPipeline,
    Wan22Image2VideoModularPipeline,
    Wan22ModularPipeline,
    Wan22VaceModularPipeline,
    WanAnimate2DistilledModularPipeline,
    WanAnimate2ModularPipeline,
    WanAnimate2Transformer3DModel,
    WanImage2VideoModularPipeline,
    WanModularPipeline,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
    ZImageModularPipeline,
)
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_DIM, _flux_components, _ltx_components, _sd3_components, _wan_components

from . import cosmos, ernie_image, flux2, helios, hunyuan_video, ideogram4, krea2, ltx2, qwenimage, wan, z_image
from .checks import CHECKS
from .clips import clip, clip_vision
from .inputs import call, features, image, picture
from .registry import NOT_BUILT, Limit, generator, register_modular
from .texts import LM

texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT}
NO_TEXT = ("text_encoder", "decode")


def latents(**arguments: Any) -> Any:
    """As `call`; a modular pipeline is asked for the latents by name, whatever its decoder goes on to make of them."""
    made = call(**arguments)

    def fresh() -> dict[str, Any]:
        return {name: value for name, value in made().items() if name != "output_type"} | {"output": "latents"}

    return fresh


register_modular(FluxModularPipeline, _flux_components, latents(prompt=PROMPT, max_sequence_length=32))
register_modular(
    FluxKontextModularPipeline,
    _flux_components,
    latents(prompt=PROMPT, max_sequence_length=32, image=picture, _auto_resize=False, max_area=32 * 32),
)
register_modular(StableDiffusion3ModularPipeline, _sd3_components, latents(**texts, image=image, strength=0.75))
register_modular(Flux2ModularPipeline, flux2.components, latents(**flux2.text), without=NO_TEXT)
register_modular(Flux2KleinModularPipeline, flux2.components, latents(**flux2.text), without=NO_TEXT)
register_modular(Flux2KleinBaseModularPipeline, flux2.components, latents(**flux2.guided), without=NO_TEXT)
register_modular(QwenImageModularPipeline, qwenimage.components, latents(**qwenimage.text), without=NO_TEXT)
# the autoencoder would be given a million pixels
NO_PICTURE = ("text_encoder", "vae_encoder", "decode")
register_modular(
    QwenImageEditModularPipeline,
    qwenimage.components,
    latents(**qwenimage.text, image_latents=lambda: features(1, qwenimage.CHANNELS, 1, 16, 16, seed=4)),
    without=NO_PICTURE,
)
register_modular(
    QwenImageEditPlusModularPipeline,
    qwenimage.components,
    latents(**qwenimage.text, image_latents=lambda: [features(1, qwenimage.CHANNELS, 1, 16, 16, seed=4)]),
    without=NO_PICTURE,
)
register_modular(
    QwenImageLayeredModularPipeline,
    qwenimage.layered,
    latents(
        prompt_embeds=lambda: features(1, 8, LM["hidden_size"]),
        prompt_embeds_mask=lambda: features(1, 8) < 99,
        negative_prompt_embeds=lambda: features(1, 8, LM["hidden_size"], seed=3),
        negative_prompt_embeds_mask=lambda: features(1, 8) < 99,
        image_latents=lambda: features(1, 1, qwenimage.CHANNELS, 8, 8, seed=4),
        layers=2,
    ),
    without=NO_PICTURE,
)
seen = {name: functools.partial(torch.zeros, 1, 8, dtype=torch.bool) for name in ("image_pad_mask", "negative_image_pad_mask")}
register_modular(
    QwenImage21ModularPipeline,
    qwenimage.second,
    latents(**qwenimage.text, **seen, height=64, width=64),
    without=NO_TEXT,
)
register_modular(
    QwenImage21TurboModularPipeline,
    qwenimage.second,
    latents(**qwenimage.text, **seen, height=64, width=64),
    without=NO_TEXT,
)
register_modular(ZImageModularPipeline, z_image.components, latents(**z_image.text), without=NO_TEXT)
register_modular(Krea2ModularPipeline, krea2.components, latents(**krea2.text), without=NO_TEXT)
register_modular(Krea2TurboModularPipeline, krea2.components, latents(**krea2.text), without=NO_TEXT)
register_modular(
    ErnieImageModularPipeline, ernie_image.components, latents(**ernie_image.text), without=("prompt_enhancer", *NO_TEXT)
)
register_modular(
    Ideogram4ModularPipeline,
    ideogram4.components,
    latents(prompt=PROMPT, max_sequence_length=64, guidance_schedule=[3.0] * 4, prompt_upsampling=False),
)

register_modular(LTXModularPipeline, _ltx_components, latents(**texts, num_frames=9, max_sequence_length=16))


def video_and_audio(**more: Any) -> Any:
    made = latents(**texts, num_frames=5, frame_rate=25.0, max_sequence_length=16, **more)
    return lambda: made() | {"output": ["latents", "audio_latents"]}


register_modular(LTX2ModularPipeline, ltx2.components, video_and_audio())
register_modular(LTX25ModularPipeline, ltx2.components, video_and_audio())

video = {**texts, "height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16}


def two_experts(make: Any = WanTransformer3DModel, **second: Any) -> Any:
    """Wan 2.2 changes the transformer on the way from noise to video."""

    def components() -> dict[str, Any]:
        both = {} if make is WanTransformer3DModel else {"transformer": make(**wan.MODEL, **second)}
        return _wan_components() | both | {"transformer_2": make(**wan.MODEL, **second)}

    return components


def started_from_picture() -> dict[str, Any]:
    return wan.with_image_encoder(WanTransformer3DModel(in_channels=wan.CONDITIONED, image_dim=wan.IMAGE_DIM, **wan.MODEL))


def started_from_picture_2_2() -> dict[str, Any]:
    experts = [WanTransformer3DModel(in_channels=wan.CONDITIONED, **wan.MODEL) for _ in range(2)]
    return _wan_components() | {"transformer": experts[0], "transformer_2": experts[1]}


register_modular(WanModularPipeline, _wan_components, latents(**video))
register_modular(WanImage2VideoModularPipeline, started_from_picture, latents(**video, image=lambda: picture(16)))
register_modular(Wan22ModularPipeline, two_experts(), latents(**video))
register_modular(Wan22Image2VideoModularPipeline, started_from_picture_2_2, latents(**video, image=lambda: picture(16)))
register_modular(
    Wan22VaceModularPipeline,
    two_experts(WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=96),
    latents(**video, video=lambda: clip(5), mask=lambda: clip(5, seed=9)),
)
chunks = {"num_latent_frames_per_chunk": 2, "history_sizes": lambda: [4, 2, 1]}
register_modular(HeliosModularPipeline, helios.components, latents(**video | {"num_frames": 10}, **chunks))
register_modular(
    HunyuanVideo15ModularPipeline,
    lambda: hunyuan_video.components_15("t2v", guider=None),  # diffusers does not save it
    latents(**hunyuan_video.text_15, num_frames=5, batch_size=1),
    without=NO_TEXT,
)


def flux_3(flow_map: bool = False) -> dict[str, Any]:
    transformer = Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=flow_map,
    )
    return {"transformer": transformer, "vae": flux2.tiny_flux2_vae(), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}


NOT_KEPT = {
    "saved": Limit(
        "its scheduler is made from a configuration in diffusers' source, so saving does not write it", error="came back as"
    )
}
NO_UPSAMPLING = ("prompt_upsampler", "text_encoder", "vae_encoder", "decode")
register_modular(Flux3ModularPipeline, flux_3, latents(**flux2.guided), without=NO_UPSAMPLING, limits=NOT_KEPT)
register_modular(
    Flux3DistilledModularPipeline, lambda: flux_3(flow_map=True), latents(**flux2.text), without=NO_UPSAMPLING, limits=NOT_KEPT
)


def anima() -> dict[str, Any]:
    transformer = CosmosTransformer3DModel(
        in_channels=qwenimage.CHANNELS, out_channels=qwenimage.CHANNELS, text_embed_dim=16, **cosmos.MODEL
    )
    conditioner = AnimaTextConditioner(
        source_dim=16,
        target_dim=16,
        model_dim=16,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=32,
        min_sequence_length=8,
    )
    return qwenimage.components() | {
        "transformer": transformer,
        "text_conditioner": conditioner,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def anima_text(sign: str, seed: int) -> dict[str, Any]:
    return {
        f"{sign}qwen_prompt_embeds": lambda: features(1, 8, 16, seed=seed),
        f"{sign}qwen_attention_mask": lambda: torch.ones(1, 8, dtype=torch.long),
        f"{sign}t5_input_ids": lambda: torch.arange(8)[None] + seed,
        f"{sign}t5_attention_mask": lambda: torch.ones(1, 8, dtype=torch.long),
    }


register_modular(AnimaModularPipeline, anima, latents(**anima_text("", 2), **anima_text("negative_", 3)), without=NO_TEXT)
register_modular(
    Cosmos3OmniModularPipeline,
    cosmos.components_3,
    latents(**texts, num_frames=5, use_system_prompt=False, enable_sound=True),
    without=(),
)
register_modular(
    Cosmos3DistilledModularPipeline,
    lambda: cosmos.components_3() | {"scheduler": FlowMatchEulerDiscreteScheduler(), "distilled_sigmas": [1.0, 0.9, 0.7, 0.4]},
    latents(prompt=PROMPT, num_frames=5, use_system_prompt=False),
)
pyramid_call = latents(
    **video | {"num_frames": 10, "height": 64, "width": 64}, **chunks, pyramid_num_inference_steps_list=[2, 2, 2]
)
no_stages = {name: helios.NO_STAGES for name in CHECKS if name != "callback"}
register_modular(HeliosPyramidModularPipeline, helios.pyramid, pyramid_call, limits=no_stages)
register_modular(HeliosPyramidDistilledModularPipeline, helios.distilled, pyramid_call, limits=no_stages)


def music() -> dict[str, Any]:
    return {
        "condition_encoder": MiniMaxMusic3ConditionEncoder(
            condition_hidden_dim=8,
            num_condition_layers=2,
            out_dim=16,
            input_sampling_rate=24,
            input_hop_length=1,
            output_sampling_rate=24,
            output_hop_length=1,
        ),
        "transformer": MiniMaxMusic3Transformer1DModel(
            in_channels=4,
            condition_dim=16,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            ff_inner_dim=32,
            rotary_dim=8,
            fourier_embedding_dim=16,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, invert_sigmas=True),
    }


# two windows of 200 frames, each a run of its own
register_modular(
    MiniMaxMusic3ModularPipeline,
    music,
    lambda: {
        "frame_hiddens": features(1, 210, 16),
        "num_inference_steps": 4,
        "generator": generator(),
        "output": "latent_chunks",
    },
    without=("semantic_generator", "decode"),
)
NOT_BUILT["MiniMaxH3ModularPipeline"] = (
    "not to be shaped: its velocities point to the data and its times run from 0 to 1; its saved scheduler is refused, but "
    "the configuration in memory is a shift alone, which cannot be told from others"
)


def animated() -> dict[str, Any]:
    transformer = WanAnimate2Transformer3DModel(dim=24, ffn_dim=32, freq_dim=32, text_dim=T5_DIM, num_heads=2, num_layers=2)
    parts = {"transformer": transformer, "image_encoder": clip_vision(1280, size=224)}
    return _wan_components() | parts | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0)}


def animate_call() -> dict[str, Any]:
    """The latents of a segment are forgotten as soon as its frames are decoded."""
    start = latents(**texts, image=lambda: picture(32), driving_video=lambda: clip(5, 32), segment_frame_length=5)()
    return start | {"num_inference_steps": 2, "output": "segment_frames"}


register_modular(WanAnimate2ModularPipeline, animated, animate_call)
register_modular(WanAnimate2DistilledModularPipeline, animated, animate_call)
