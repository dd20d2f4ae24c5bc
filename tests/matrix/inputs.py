"""Seeded inputs of the tiny calls: pictures, masks, features in place of a text encoder, and the arguments all calls share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from .registry import generator


def image(size: int = 32, seed: int = 1) -> torch.Tensor:
    """(1, 3, size, size) in [0, 1]."""
    return torch.rand(1, 3, size, size, generator=generator(seed))


def picture(size: int = 32, seed: int = 1) -> Image.Image:
    return Image.fromarray((image(size, seed)[0].permute(1, 2, 0) * 255).byte().numpy())


def mask(size: int = 32) -> torch.Tensor:
    """(1, 1, size, size), the right half to be painted."""
    return (torch.arange(size) >= size // 2).float().expand(1, 1, size, size).clone()


def features(*shape: int, seed: int = 2) -> torch.Tensor:
    """What a text encoder would have said."""
    return torch.randn(*shape, generator=generator(seed))


def text_features(*shape: int, mask: str | None = None) -> dict[str, Callable[[], torch.Tensor]]:
    """For `call`: features of a prompt and of a negative one, and masks of this name that let all 8 tokens through."""
    made: dict[str, Callable[[], torch.Tensor]] = {
        "prompt_embeds": lambda: features(*shape),
        "negative_prompt_embeds": lambda: features(*shape, seed=3),
    }
    if mask is not None:
        made |= dict.fromkeys((mask, f"negative_{mask}"), lambda: torch.ones(1, 8, dtype=torch.bool))
    return made


def small(**more: Any) -> dict[str, Any]:
    """Arguments of a small 4-step call with latents as output; ``more`` add to them or replace them."""
    defaults = {"height": 32, "width": 32, "num_inference_steps": 4, "output_type": "latent", "generator": generator()}
    return defaults | more


def call(base: Callable[..., dict[str, Any]] = small, /, **arguments: Any) -> Callable[[], dict[str, Any]]:
    """For `register`: the arguments of ``base`` and these, where functions are called anew for every call's value."""
    return lambda: base(**{name: value() if callable(value) else value for name, value in arguments.items()})
