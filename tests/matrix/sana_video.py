"""SANA-Video (DPM-Solver++ on flow sigmas), and SANA-WM with its refiner: per-token timesteps, blocks that are runs."""

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SanaWMLTX2Refiner,
    SanaWMLTX2RefinerTransformer3DModel,
    SanaWMPipeline,
    SanaWMTransformer3DModel,
)
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_DIM
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2Model

from .inputs import picture, small
from .ltx2 import CHANNELS, MODEL, gemma3, ltx2_connectors, ltx2_vae
from .registry import Tiny, assemble, generator, tiny
from .texts import LM, lm_tokenizer


def _components(**more: Any) -> dict[str, Any]:
    return {
        "transformer": SanaVideoTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=T5_DIM,
            sample_size=8,
            rope_max_seq_len=32,
        ),
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "text_encoder": Gemma2Model(Gemma2Config(**LM)),
        "tokenizer": lm_tokenizer(),
        "scheduler": DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    } | more


def _call(**more: Any) -> dict[str, Any]:
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "max_sequence_length": 16}
    return small(**texts, frames=5, use_resolution_binning=False, complex_human_instruction=None, **more)


@tiny(SanaVideoPipeline)
def sana_video() -> Tiny:
    return Tiny(assemble(SanaVideoPipeline, _components), _call)


@tiny(SanaImageToVideoPipeline)
def sana_image_to_video() -> Tiny:
    """The first latent frame is given, the others are stepped."""
    pipe = assemble(SanaImageToVideoPipeline, lambda: _components(scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0)))
    return Tiny(pipe, lambda: _call(image=picture(32)))


@tiny(SanaWMPipeline)
def sana_wm() -> Tiny:
    """Every token has its own timestep; the first frame is given and does not move."""

    def components() -> dict[str, Any]:
        return {
            "transformer": SanaWMTransformer3DModel(
                in_channels=CHANNELS,
                num_layers=2,
                hidden_size=32,
                num_attention_heads=2,
                softmax_every_n=2,
                linear_head_dim=16,
                chunk_plucker_channels=12,
                chunk_plucker_post_attn_blocks=2,
                caption_channels=T5_DIM,
            ),
            "vae": ltx2_vae(),
            "text_encoder": Gemma2ForCausalLM(Gemma2Config(**LM)),
            "tokenizer": lm_tokenizer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=8.0),
        }

    def call() -> dict[str, Any]:
        poses = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
        poses[:, 2, 3] = 0.1 * np.arange(5)
        texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "chi_prompt": ["Say: "], "max_sequence_length": 16}
        return small(**texts, image=picture(32), c2w=poses, intrinsics=[32.0, 32.0, 16.0, 16.0], num_frames=5)

    return Tiny(assemble(SanaWMPipeline, components), call)


@tiny(SanaWMLTX2Refiner)
def sana_wm_refiner() -> Tiny:
    """Two blocks of frames, each a run of its own that reads the schedule back and sets it anew."""

    def components() -> dict[str, Any]:
        return {
            "transformer": SanaWMLTX2RefinerTransformer3DModel(**MODEL),
            "connectors": ltx2_connectors(),
            "text_encoder": gemma3(),
            "tokenizer": lm_tokenizer(padding_side="left"),
            "scheduler": FlowMatchEulerDiscreteScheduler(),
            "text_max_sequence_length": 16,
        }

    def call() -> dict[str, Any]:
        return {
            "sana_latent": torch.randn(1, CHANNELS, 5, 4, 4, generator=generator(1)),
            "prompt": PROMPT,
            "fps": 16.0,
            "block_size": 2,
            "sigmas": (0.9, 0.7, 0.4, 0.0),
            "output_type": "latent",
            "generator": generator(),
        }

    return Tiny(assemble(SanaWMLTX2Refiner, components), call)
