"""Checkpoints of a training: which there are, from which step, and the pipeline of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import brief
from ..pipelines.complete_weights import check_weights, quiet
from ..pipelines.loading import pipeline_class
from ..pipelines.pipeline_kpe_monitor import plain_class
from ..sampling.find import file_hash, fingerprint

LORA = "pytorch_lora_weights.safetensors"  # as the training scripts of diffusers name it
BASE = "base model"
KINDS = "a pipeline folder, a LoRA file (.safetensors), or a folder with one"


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline folder, or a LoRA file.

    Attributes:
        path: of the folder or file; None for the base model without LoRA.
        step: of the training, from the name.
        sha256: of the weights.
        is_lora: whether it is one.
    """

    path: Path | None
    step: int
    sha256: str
    is_lora: bool

    @property
    def name(self) -> str:
        return BASE if self.path is None else f"step {self.step}"


def find_checkpoints(paths: Sequence[Path]) -> list[Checkpoint]:
    """The checkpoints at these paths by step.

    Raises:
        ValueError: one is missing, neither pipeline nor LoRA, or has no step in its name; two have the same step or are of
            different kinds, or pipelines of different classes; weights are missing.
    """
    found = sorted((_checkpoint(path) for path in paths), key=lambda checkpoint: checkpoint.step)
    for a, b in pairwise(found):
        if a.step == b.step:
            raise ValueError(f"{a.path} and {b.path} are both of step {a.step}; leave one out.")
        if a.is_lora != b.is_lora:
            lora, pipeline = (a, b) if a.is_lora else (b, a)
            raise ValueError(f"{lora.path} is a LoRA, {pipeline.path} a pipeline; give checkpoints of one kind.")
    kinds = {pipeline_class(one.path): one.path for one in found if one.path is not None and not one.is_lora}
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
        return Checkpoint(path, _step(path), fingerprint(path), False)
    file = _lora_file(path)
    return Checkpoint(file, _step(path), file_hash(file), True)


def _lora_file(path: Path) -> Path:
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not path.exists():
        raise ValueError(f"there is no checkpoint at {path}; give {KINDS}.")
    if not path.is_dir():
        raise ValueError(f"{path} is no checkpoint; give {KINDS}.")
    files = sorted(file for file in path.glob("*.safetensors"))
    if len(files) != 1 and (path / LORA) not in files:
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
