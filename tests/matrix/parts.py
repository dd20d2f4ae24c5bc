"""Components that several families share."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import _image_vae
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from .texts import LM, lm_tokenizer


def variant(model: Any, **changes: Any) -> Any:
    """A new model of the same class and settings, but for ``changes``."""
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return type(model)(**settings | changes)


def image_vae(halvings: int = 1, **settings: Any) -> AutoencoderKL:
    """An image autoencoder that halves height and width so many times; by default 4 latent channels."""
    levels = {
        "down_block_types": ["DownEncoderBlock2D"] * (halvings + 1),
        "up_block_types": ["UpDecoderBlock2D"] * (halvings + 1),
        "block_out_channels": [4] * (halvings + 1),
    }
    return variant(_image_vae(), **levels | settings)


def dynamic_schedule(**settings: Any) -> FlowMatchEulerDiscreteScheduler:
    """FLUX's schedule: the shift grows with the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, **settings)


def no_text_encoder(*names: str) -> dict[str, None]:
    """Text encoders and tokenizers left out, for pipelines that are called with text features."""
    return dict.fromkeys(names or ("text_encoder", "tokenizer"))


VISION_TOKENS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
PATCH = 4


class PictureProcessor(Qwen3VLProcessor):
    """Qwen-VL's processor without its video half, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


# diffusers goes by name and module to see that a component is of the class a pipeline asks for
PictureProcessor.__name__, PictureProcessor.__module__ = "Qwen3VLProcessor", "transformers"


def qwen_tokenizer() -> Any:
    """Byte-level, with the tokens that stand for pictures."""
    return lm_tokenizer(VISION_TOKENS)


def picture_processor() -> PictureProcessor:
    """Any picture becomes 2 x 2 patches of two tokens."""
    pixels = (2 * PATCH) ** 2
    images = Qwen2VLImageProcessor(patch_size=PATCH, merge_size=2, min_pixels=pixels, max_pixels=pixels)
    tokenizer = qwen_tokenizer()
    return PictureProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def _vision_tokens() -> dict[str, int]:
    ids = qwen_tokenizer().convert_tokens_to_ids(VISION_TOKENS)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return dict(zip(names, ids, strict=True))


def _language(layers: int) -> dict[str, Any]:
    vocabulary = len(qwen_tokenizer())
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    return LM | {"vocab_size": vocabulary, "num_hidden_layers": layers, "rope_parameters": rope}


VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": PATCH}


def qwen3_vl(layers: int = 2) -> Qwen3VLForConditionalGeneration:
    vision = {"out_hidden_size": LM["hidden_size"], "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=_language(layers), vision_config=VISION | vision, **_vision_tokens())
    return Qwen3VLForConditionalGeneration(config)


def qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    vision = {"out_hidden_size": LM["hidden_size"], "fullatt_block_indexes": [0], "window_size": 2 * PATCH}
    config = Qwen2_5_VLConfig(text_config=_language(2), vision_config=VISION | vision, **_vision_tokens())
    return Qwen2_5_VLForConditionalGeneration(config)
