"""Cosmos 2 (noise levels from 80 to 0.002), 2.5 (UniPC on Karras levels) and 3 (video and sound in one call)."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    ConfigMixin,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2_5_TransferPipeline,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    Cosmos3AVAEAudioTokenizer,
    Cosmos3OmniPipeline,
    Cosmos3OmniTransformer,
    CosmosControlNetModel,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import register_to_config
from tiny_pipelines import NEGATIVE_PROMPT, PROMPT, T5_DIM, _t5_encoder, _t5_tokenizer
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel
from transformers.utils import is_torchvision_available

from .clips import clip
from .inputs import picture, small
from .registry import NOT_BUILT, Limit, register
from .texts import LM, QWEN_ROPE, lm_tokenizer


class LetThrough(ModelMixin, ConfigMixin):
    """In place of cosmos_guardrail, models of many gigabytes without which the pipelines refuse to run: passes everything."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


MODEL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "mlp_ratio": 2,
    "adaln_lora_dim": 4,
    "max_size": (4, 16, 16),
    "rope_scale": (2.0, 1.0, 1.0),
    "extra_pos_embed_type": None,
    "concat_padding_mask": False,  # needs torchvision
}
LEVELS = "the stock Euler scheduler takes Karras' levels, 200 to 0.01, as they are; UniPC and ours map them to 0 ... 1"
KARRAS = {"off": Limit(LEVELS, error="outputs differ"), "callback": Limit(LEVELS, error="timesteps of the callbacks differ")}
LM_LAYERS = LM["num_hidden_layers"] * LM["hidden_size"]  # Cosmos 2.5 takes the features of all layers


def components(channels: int) -> dict[str, Any]:
    return {
        "transformer": CosmosTransformer3DModel(in_channels=channels, text_embed_dim=T5_DIM, **MODEL),
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        "text_encoder": _t5_encoder(),
        "tokenizer": _t5_tokenizer(),
        "safety_checker": LetThrough(),
    }


def components_2_5(**transformer: Any) -> dict[str, Any]:
    model = CosmosTransformer3DModel(in_channels=17, text_embed_dim=LM_LAYERS, **MODEL, **transformer)
    return components(17) | {
        "transformer": model,
        "text_encoder": Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**LM, **QWEN_ROPE)),
        "tokenizer": lm_tokenizer(),
        "scheduler": UniPCMultistepScheduler(
            use_karras_sigmas=True,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            sigma_max=200.0,
            sigma_min=0.01,
        ),
    }


def components_transfer() -> dict[str, Any]:
    controlnet = CosmosControlNetModel(
        n_controlnet_blocks=1,
        in_channels=16 + 1 + 1,
        latent_channels=16 + 1 + 1,
        model_channels=32,
        num_attention_heads=2,
        attention_head_dim=16,
        mlp_ratio=2,
        text_embed_dim=LM_LAYERS,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        rope_scale=(2.0, 1.0, 1.0),
        img_context_dim_out=32,
        encoder_hidden_states_channels=LM_LAYERS,
    )
    return components_2_5(controlnet_block_every_n=2) | {"controlnet": controlnet}


def components_3() -> dict[str, Any]:
    return {
        "transformer": Cosmos3OmniTransformer(
            head_dim=16,
            hidden_size=32,
            intermediate_size=64,
            latent_channel=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=2,
            patch_latent_dim=64,
            rope_axes_dim=(2, 3, 3),
            sound_dim=4,
            sound_gen=True,
            vocab_size=512,
        ),
        "text_tokenizer": lm_tokenizer(("<|vision_start|>",)),
        "vae": AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "scheduler": UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        "sound_tokenizer": Cosmos3AVAEAudioTokenizer(
            sampling_rate=2000,
            vocoder_input_dim=4,
            dec_dim=8,
            dec_c_mults=(1, 1),
            dec_strides=(8, 10),
            encoder_enabled=False,
        ),
        "enable_safety_checker": False,
    }


def call(**more: Any) -> Any:
    texts = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT}
    return lambda: small(**texts, **{name: make() if callable(make) else make for name, make in more.items()})


register(Cosmos2TextToImagePipeline, lambda: components(16), call(max_sequence_length=16))
register(Cosmos2VideoToWorldPipeline, lambda: components(17), call(image=picture, num_frames=5, max_sequence_length=16))
register(
    Cosmos2_5_PredictBasePipeline,
    components_2_5,
    call(video=lambda: clip(5, 32), num_frames=5, max_sequence_length=128),
    limits=KARRAS,
)
if is_torchvision_available():
    register(
        Cosmos2_5_TransferPipeline,
        components_transfer,
        call(controls=lambda: clip(9, 32), width=32, num_frames_per_chunk=5, max_sequence_length=128),
        limits=KARRAS,
    )
else:
    NOT_BUILT["Cosmos2_5_TransferPipeline"] = "its ControlNet resizes with torchvision, which is not installed here"

register(
    Cosmos3OmniPipeline,
    components_3,
    call(num_frames=5, use_system_prompt=False, enable_sound=True),
)
