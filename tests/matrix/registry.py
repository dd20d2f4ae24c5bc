"""Tiny versions of diffusers' flow pipelines: the builders register themselves here, `derive` says what there is to build."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Limit:
    """A check that a pipeline is known not to pass, as a strict expectation: it must fail, and with this error.

    Args:
        why: one sentence for the support table. error: regular expression found in the message of the failure.
    """

    why: str
    error: str


@dataclass(frozen=True)
class Tiny:
    """A pipeline with tiny seeded random weights (CPU, fp32, eval, no progress bar) and the arguments of a small call.

    Args:
        pipe: the pipeline. call: fresh arguments at every call of this function (generators are used up), with
            ``num_inference_steps`` of about 4 and an ``output_type`` that returns latents where there is one.
        limits: name of a check in `checks.CHECKS` -> why this pipeline cannot pass it.
    """

    pipe: Any
    call: Callable[[], dict[str, Any]]
    limits: Mapping[str, Limit] = field(default_factory=dict)


BUILDERS: dict[str, Callable[[], Tiny]] = {}
NOT_BUILT: dict[str, str] = {}  # class name -> why no tiny version can be built here


def tiny(pipeline_class: type) -> Callable[[Callable[[], Tiny]], Callable[[], Tiny]]:
    """Register the builder of one pipeline class."""

    def register(build: Callable[[], Tiny]) -> Callable[[], Tiny]:
        BUILDERS[pipeline_class.__name__] = build
        return build

    return register


def register(
    pipeline_class: type, components: Callable[[], dict[str, Any]], call: Callable[[], dict[str, Any]], **more: Any
) -> None:
    """Register a class that needs nothing but components and a call; ``more`` are further fields of `Tiny`."""
    BUILDERS[pipeline_class.__name__] = lambda: Tiny(assemble(pipeline_class, components), call, **more)


def register_modular(
    pipeline_class: Any,
    components: Callable[[], dict[str, Any]],
    call: Callable[[], dict[str, Any]],
    without: Iterable[str] = ("decode",),
    **more: Any,
) -> None:
    """Register a modular pipeline. ``components`` may have more than its blocks need; ``without`` names the blocks left out:
    a call asks for latents, and may bring what an encoder would make."""

    def build() -> Tiny:
        blocks = pipeline_class().blocks
        for name in without:
            blocks.sub_blocks.pop(name)

        def pipeline(**made: Any) -> Any:
            pipe = pipeline_class(blocks=blocks)
            wanted = pipe.components.keys() | pipe.config.keys()
            pipe.update_components(**{name: part for name, part in made.items() if name in wanted and part is not None})
            return pipe

        return Tiny(assemble(pipeline, components), call, **more)

    BUILDERS[pipeline_class.__name__] = build


def load_families() -> None:
    """Import every module of this package, so that all builders are registered."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def assemble(pipeline_class: Callable[..., Any], components: Callable[[], dict[str, Any]], seed: int = 0) -> Any:
    """The pipeline of seeded ``components()``, ready to run; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)  # memory that a model leaves uninitialised is NaN then, and is found
        try:
            pipe = pipeline_class(**components())
        finally:
            torch.use_deterministic_algorithms(False)
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval().requires_grad_(False)
                for weight in component.parameters():
                    if weight.is_floating_point() and weight.isnan().any():
                        weight.normal_(std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)
