"""Sana images, whose checkpoints ship a multistep scheduler. Text features are given, so the Gemma encoder is absent."""

from typing import Any

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintImg2ImgPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)

from .checks import CHECKS
from .inputs import call, image, text_features
from .parts import no_text_encoder
from .registry import Limit, register

TEXT_DIM, CHANNELS = 8, 4
SIZE = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": TEXT_DIM,
    "sample_size": 16,
}


def components(**transformer: Any) -> dict[str, Any]:
    vae = AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        scaling_factor=0.41407,
    )
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return {
        "scheduler": scheduler,
        "vae": vae,
        "transformer": SanaTransformer2DModel(**SIZE, **transformer),
        **no_text_encoder(),
    }


def with_controlnet() -> dict[str, Any]:
    return components() | {"controlnet": SanaControlNetModel(**SIZE | {"num_layers": 1})}


def sprint() -> dict[str, Any]:
    scheduler = SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    return components(guidance_embeds=True, qk_norm="rms_norm_across_heads") | {"scheduler": scheduler}


guided = text_features(1, 8, TEXT_DIM, mask="prompt_attention_mask")
guided |= {"negative_prompt": None, "use_resolution_binning": False}
text = {name: value for name, value in guided.items() if not name.startswith("negative")}
# of the trigonometric flow and consistency steps of SCM there is no Euler path to shape
trigflow = dict.fromkeys(CHECKS, Limit("predicts a trigonometric flow and re-noises every step: refused", "not flow matching"))

register(SanaPipeline, components, call(**guided))
register(SanaPAGPipeline, components, call(**guided))
register(SanaControlNetPipeline, with_controlnet, call(**guided, control_image=lambda: image(seed=3)))
register(SanaSprintPipeline, sprint, call(**text, num_inference_steps=2), limits=trigflow)
register(SanaSprintImg2ImgPipeline, sprint, call(**text, image=image, num_inference_steps=2), limits=trigflow)
