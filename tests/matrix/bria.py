"""Bria 3.2, FIBO, FIBO Edit and FIBO 2. FIBO and its Edit read a SmolLM3 encoder; text features are given to the others."""

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    BriaFiboEditPipeline,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
)
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from .flux2 import tiny_flux2_vae
from .inputs import call, picture, text_features
from .parts import dynamic_schedule, image_vae, no_text_encoder
from .registry import register
from .texts import LM, lm_tokenizer

TEXT_DIM = 16
SIZE = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": [4, 6, 6],
}


def bria() -> dict[str, Any]:
    transformer = BriaTransformer2DModel(in_channels=16, joint_attention_dim=TEXT_DIM, **SIZE)
    return {
        "scheduler": dynamic_schedule(),
        "vae": image_vae(),
        "transformer": transformer,
        **no_text_encoder(),
    }


def fibo() -> dict[str, Any]:
    text_dim = LM["hidden_size"]
    transformer = BriaFiboTransformer2DModel(
        in_channels=16, joint_attention_dim=2 * text_dim, text_encoder_dim=text_dim, **SIZE
    )
    config = {name: value for name, value in LM.items() if name != "head_dim"}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return {
        "scheduler": dynamic_schedule(),
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1] * 5, num_res_blocks=1, temperal_downsample=[False] * 4),
        "text_encoder": SmolLM3ForCausalLM(SmolLM3Config(**config, **special)),
        "tokenizer": lm_tokenizer(),
        "transformer": transformer,
    }


def fibo2() -> dict[str, Any]:
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=TEXT_DIM,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=4,
        gist_max_text_len=32,
        axes_dims=(8, 4, 4),
        axes_lens=(256, 32, 32),
    )
    return {
        "scheduler": dynamic_schedule(),
        "vae": tiny_flux2_vae(),
        "transformer": transformer,
        **no_text_encoder("text_encoder", "processor"),
    }


text = text_features(1, 8, TEXT_DIM)
# one bundle for the gist of the prompt, one for the layer where text is injected
bundles = text_features(1, 2, 8, TEXT_DIM, mask="prompt_embeds_mask")
edit = {"prompt": '{"edit_instruction": "a red fox"}', "negative_prompt": "blurry", "image": lambda: picture(64)}

register(BriaPipeline, bria, call(**text))
register(BriaFiboPipeline, fibo, call(prompt='{"a": "red fox"}', negative_prompt="blurry"))
register(BriaFiboEditPipeline, fibo, call(**edit))
register(BriaFibo2Pipeline, fibo2, call(**bundles))
