"""Are the weights in a pipeline folder complete? A broken download otherwise ends in noise, or in the middle of a job."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..files import read_json

LIBRARIES = (diffusers_logging, transformers_logging)
SHOWN = 5  # names of tensors


def check_weights(folder: Path, **kwargs: Any) -> None:
    """Compare the tensors of every model in a pipeline folder with those of its class; none is read.

    Args:
        folder: the pipeline.
        **kwargs: as `DiffusionPipeline.from_pretrained`; components among them are not looked at.

    Raises:
        ValueError: tensors are missing, left over, or of another shape: which.
        OSError: a component has no weights.
    """
    index = read_json(folder / "model_index.json", dict)
    options: dict[str, Any] = {name: kwargs[name] for name in ("variant", "use_safetensors") if name in kwargs}
    for name, value in index.items():
        kind = None if name.startswith("_") or name in kwargs else model_class(value)
        if kind is not None and "quantization_config" not in read_json(folder / name / "config.json", dict):
            check_model(kind, folder / name, **options)


def model_class(value: Any) -> Any:
    """The class of a component with weights, which ``model_index.json`` gives as [library, name]; None for another."""
    if not isinstance(value, list) or len(value) != 2 or value[0] not in ("diffusers", "transformers", "diffusers_kts"):
        return None
    kind = getattr(importlib.import_module(value[0]), value[1] or "", None)
    return kind if isinstance(kind, type) and issubclass(kind, (ModelMixin, PreTrainedModel)) else None


def check_model(kind: Any, folder: Path, **options: Any) -> dict[str, torch.Size]:
    """Compare the tensors of one model with those of its class; their shapes by name, without reading them.

    Raises:
        ValueError, OSError: as `check_weights`.
    """
    with quiet():
        model, found = kind.from_pretrained(folder, output_loading_info=True, device_map="meta", **options)
    wrong = [
        f"{len(found[f'{key}_keys'])} {key} ({_names(found[f'{key}_keys'])})"
        for key in ("missing", "unexpected", "mismatched")
        if found[f"{key}_keys"]
    ]
    if wrong:
        raise ValueError(f"{folder} has not the tensors of {kind.__name__}: {', '.join(wrong)}; download it again")
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' bars and reports, which come when the pipeline is loaded."""
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in LIBRARIES]
    for library in LIBRARIES:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bars in before:
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


def _names(keys: Any) -> str:
    names = sorted(key if isinstance(key, str) else key[0] for key in keys)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
