"""Every flow pipeline class of diffusers, and how to build a tiny one: the list is derived, the builders are registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Tiny:
    """A pipeline with tiny seeded random weights (CPU, fp32, eval, no progress bar) and the arguments of a small call.

    Args:
        pipe: the pipeline. call: fresh arguments at every call of this function (generators are used up), with
            ``num_inference_steps`` of about 4 and an ``output_type`` that returns latents where there is one.
        shaped: False where the scheduler of the checkpoint is no Euler flow scheduler, so `from_config` converts.
    """

    pipe: Any
    call: Callable[[], dict[str, Any]]
    shaped: bool = True


BUILDERS: dict[str, Callable[[], Tiny]] = {}
NOT_BUILT: dict[str, str] = {}  # class name -> why no tiny version can be built here


def tiny(pipeline_class: type) -> Callable[[Callable[[], Tiny]], Callable[[], Tiny]]:
    """Register the builder of one pipeline class."""

    def register(build: Callable[[], Tiny]) -> Callable[[], Tiny]:
        BUILDERS[pipeline_class.__name__] = build
        return build

    return register


def assemble(pipeline_class: type, components: Callable[[], dict[str, Any]], seed: int = 0) -> Any:
    """The pipeline of seeded ``components()``, ready to run; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = pipeline_class(**components())
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)
