"""Checkpoints of a training: which there are, from which step, and the pipeline of each.

A pipeline folder stands alone. A LoRA, or a folder with single parts as accelerate's ``save_state`` leaves it (``unet/`` or
``transformer/`` next to the state of the optimizer), needs a base pipeline. Only safetensors files are read, no pickles.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import brief
from ..files import read_json
from ..pipelines.complete_weights import check_model, check_weights, model_class, quiet
from ..pipelines.loading import pipeline_class
from ..pipelines.pipeline_kpe_monitor import plain_class
from ..sampling.find import file_hash, files_hash, fingerprint

LORA = "pytorch_lora_weights.safetensors"  # as the training scripts of diffusers name it
BASE = "base model"
EMA = "_ema"  # at the end of the name of a part: averaged weights, which the training scripts save in the end
KINDS = "a pipeline folder, a LoRA file (.safetensors), or a folder with one, or with transformer/ or unet/"


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline folder, a LoRA file, or a folder with parts of a pipeline.

    Attributes:
        path: of the folder or file; None for the base model as it is.
        step: of the training, from the name.
        sha256: of the weights.
        kind: which of these it is.
        parts: folders in place of those of the base pipeline, by component.
    """

    path: Path | None
    step: int
    sha256: str
    kind: Literal["pipeline", "LoRA", "part of a pipeline"]
    parts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return BASE if self.path is None else f"step {self.step}"


def find_checkpoints(paths: Sequence[Path]) -> list[Checkpoint]:
    """The checkpoints at these paths by step.

    Raises:
        ValueError: one is missing, of no known kind, or has no step in its name; two have the same step or are of
            different kinds, or pipelines of different classes; weights are missing.
    """
    found = sorted((_checkpoint(path) for path in paths), key=lambda checkpoint: checkpoint.step)
    for a, b in pairwise(found):
        if a.step == b.step:
            raise ValueError(f"{a.path} and {b.path} are both of step {a.step}; leave one out.")
        if a.kind != b.kind:
            raise ValueError(f"{a.path} is a {a.kind}, {b.path} a {b.kind}; give checkpoints of one kind.")
    kinds = {pipeline_class(one.path): one.path for one in found if one.path is not None and one.kind == "pipeline"}
    if len(kinds) > 1:
        (kind, place), (other, elsewhere) = list(kinds.items())[:2]
        raise ValueError(f"{place} is a {kind}, {elsewhere} a {other}; give checkpoints of one model.")
    return found


def _checkpoint(path: Path) -> Checkpoint:
    if (path / "model_index.json").is_file():
        pipeline_class(path)
        try:
            check_weights(path)
        except Exception as error:  # whatever a damaged folder makes diffusers, safetensors or torch raise
            raise ValueError(f"checkpoint {path} cannot be loaded ({brief(error)}); leave it out.") from error
        return Checkpoint(path, _step(path), fingerprint(path), "pipeline")
    if parts := _parts(path):
        digest = files_hash(path, [part.name for part in parts.values()])
        return Checkpoint(path, _step(path), digest, "part of a pipeline", parts)
    file = _lora_file(path)
    return Checkpoint(file, _step(path), file_hash(file), "LoRA")


def _parts(path: Path) -> dict[str, Path]:
    """Models in the folder, by the component that each is to be; averaged weights come before others."""
    if not path.is_dir() or (path / LORA).is_file():
        return {}
    folders = sorted(folder for folder in path.iterdir() if (folder / "config.json").is_file())
    return {folder.name.removesuffix(EMA): folder for folder in folders}  # x before x_ema


def _lora_file(path: Path) -> Path:
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not path.exists():
        raise ValueError(f"there is no checkpoint at {path}; give {KINDS}.")
    if not path.is_dir():
        raise ValueError(f"{path} is no checkpoint; give {KINDS}.")
    if (path / "config.json").is_file():
        raise ValueError(
            f"{path} is a part of a checkpoint; give the folder around it, {path.absolute().parent}, or a pipeline folder."
        )
    files = sorted(file for file in path.glob("*.safetensors"))
    if len(files) != 1 and (path / LORA) not in files:
        if within := sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[-1:].isdigit()):
            pattern = path / re.sub(r"\d+$", "*", within[0])
            raise ValueError(f"{path} is no checkpoint, but holds {within[0]}; give those in it, --checkpoints {pattern}.")
        held = f"{len(files)} .safetensors files" if files else "neither model_index.json nor a .safetensors file"
        raise ValueError(f"the folder {path} holds {held}; give {KINDS}.")
    return path / LORA if (path / LORA) in files else files[0]


def _step(path: Path) -> int:
    """The last number in the name; in that of the folder, where the training script gives every file the same name."""
    name = path.absolute().parent.name if path.name == LORA else path.name.removesuffix(".safetensors")
    if not (numbers := re.findall(r"\d+", name)):
        raise ValueError(f"the name of checkpoint {path} holds no training step; let it end in one, as in checkpoint-500.")
    return int(numbers[-1])


def put_lora(pipe: Any, checkpoint: Checkpoint) -> None:
    """Load a LoRA into the base pipeline, in place of the one that is there; for the base model take that out.

    Raises:
        ValueError: it cannot be read, or is not a LoRA of this pipeline.
    """
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{plain_class(type(pipe)).__name__} takes no LoRA; give its base pipeline with --model.")
    pipe.unload_lora_weights()
    if checkpoint.path is None:
        return
    try:
        state = pipe.lora_state_dict(str(checkpoint.path))
        given = sum("lora_" in key for key in (state[0] if isinstance(state, tuple) else state))
        with quiet():  # the libraries name every part that the LoRA leaves as it is
            pipe.load_lora_weights(str(checkpoint.path))
        loaded = sum("lora_" in key for part in pipe.get_list_adapters() for key, _ in getattr(pipe, part).named_parameters())
    except Exception as error:  # whatever a foreign file makes diffusers, peft, safetensors or torch raise
        raise ValueError(
            f"checkpoint {checkpoint.path} is no LoRA of this pipeline ({brief(error)}); leave it out."
        ) from error
    if not loaded or loaded < given:
        raise ValueError(
            f"checkpoint {checkpoint.path} is no LoRA of this pipeline: {loaded} of its {given} tensors fit; give its base "
            "with --model, or leave it out."
        )


def with_parts_of(base: Path, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints of parts, each with those alone that its base pipeline has, compared with the base's; no tensor is read.

    Raises:
        ValueError: none of them is a part of the pipeline; one is without safetensors, damaged, or of another shape; or the
            base is damaged.
    """
    shapes: dict[str, dict[str, torch.Size] | None] = {}
    found = []
    for checkpoint in checkpoints:
        kinds = {name: kind for name in checkpoint.parts if (kind := _class_of(base, name)) is not None}
        if not kinds:
            given = ", ".join(str(folder) for folder in checkpoint.parts.values())
            raise ValueError(f"{given} is no part of the pipeline {base}; give its base with --model, or leave it out.")
        for name, kind in kinds.items():
            folder = checkpoint.parts[name]
            _check_files(folder)
            own = _shapes(kind, folder, f"checkpoint {folder}", "leave it out", use_safetensors=True)
            if name not in shapes:
                shapes[name] = _shapes(kind, base / name, f"{name} of the base model {base}", "give a whole one with --model")
            if None not in (own, shapes[name]) and own != shapes[name]:
                raise ValueError(f"{folder} is another model than the {name} of {base}; give its base with --model.")
        parts = {name: checkpoint.parts[name] for name in kinds}
        if parts != checkpoint.parts and checkpoint.path is not None:
            digest = files_hash(checkpoint.path, [part.name for part in parts.values()])
            checkpoint = replace(checkpoint, parts=parts, sha256=digest)
        found.append(checkpoint)
    return found


def _check_files(folder: Path) -> None:
    """
    Raises:
        ValueError: no safetensors, or those of a variant alone.
    """
    if not (files := list(folder.glob("*.safetensors"))):
        raise ValueError(f"{folder} holds no .safetensors file; save it again, pickled weights are not loaded.")
    variants = {re.sub(r"-\d+-of-\d+", "", file.stem).partition(".")[2] for file in files}
    if "" not in variants:
        raise ValueError(f"{folder} holds the variant {min(variants)!r} alone; save it again without variant.")


def _shapes(kind: Any, folder: Path, called: str, remedy: str, **options: Any) -> dict[str, torch.Size] | None:
    """Of the tensors, by name; None of quantized ones, whose shapes are others.

    Raises:
        ValueError: the model is damaged.
    """
    try:
        if "quantization_config" in read_json(folder / "config.json", dict):
            return None
        return check_model(kind, folder, **options)
    except Exception as error:  # whatever a damaged folder makes diffusers, safetensors or torch raise
        raise ValueError(f"{called} cannot be loaded ({brief(error)}); {remedy}.") from error


def load_parts(checkpoint: Checkpoint, base: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The models of a checkpoint by component, for `load_pipeline`."""
    with quiet():
        return {
            name: _class_of(base, name).from_pretrained(folder, use_safetensors=True, dtype=dtype)
            for name, folder in checkpoint.parts.items()
        }


def _class_of(base: Path, name: str) -> Any:
    return model_class(read_json(base / "model_index.json", dict).get(name))
