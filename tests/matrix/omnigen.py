"""OmniGen, whose flow time counts upwards (`invert_sigmas`); the processor of its prompts needs torchvision."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel
from diffusers.utils import is_torchvision_available
from tiny_pipelines import PROMPT

from .inputs import call
from .parts import image_vae
from .registry import NOT_BUILT, register
from .texts import LM, lm_tokenizer


def components() -> dict[str, Any]:
    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        pad_token_id=0,
        vocab_size=LM["vocab_size"],
        pos_embed_max_size=16,
        time_step_dim=4,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        "vae": image_vae(),
        "tokenizer": lm_tokenizer(),
        "transformer": transformer,
    }


if is_torchvision_available():
    register(OmniGenPipeline, components, call(prompt=PROMPT))
else:
    NOT_BUILT[OmniGenPipeline.__name__] = "needs torchvision: NameError: name 'OmniGenMultiModalProcessor' is not defined"
