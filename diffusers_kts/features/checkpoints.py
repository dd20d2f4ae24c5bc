"""Checkpoints of transformers as yardsticks: whole, from safetensors alone, and known by the hash of their weights."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import brief

WEIGHTS = "model*.safetensors"
PATTERNS = ("*.json", "*.txt", WEIGHTS)
FILES = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a transformers model of the kind that was asked for; ``sha256`` is that of its weights."""

    name: str
    folder: Path
    sha256: str

    @classmethod
    def find(cls, name: str, kind: str, option: str, download: bool, files: Sequence[str] = ()) -> "Checkpoint":
        """
        Args:
            name (`str`): a folder, or an id of the Hub, looked up in the local cache.
            kind (`str`): ``model_type`` in its ``config.json``.
            option (`str`): how the user chooses it.
            download (`bool`): whether it may be fetched from the Hub.
            files (`Sequence[str]`): what it must hold besides configuration and weights.

        Raises:
            ValueError: it is not there, misses a file, or is another model.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.errors import LocalEntryNotFoundError

        needed = [*FILES, *files]
        remedy = (
            f"give a folder with {', '.join(needed)} and {WEIGHTS} with {option}, or, where there is a "
            f"network, run: hf download {name}"
        )
        folder = Path(name)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(name, allow_patterns=list(PATTERNS), local_files_only=not download))
            except LocalEntryNotFoundError as error:
                raise ValueError(f"the checkpoint {name} is not in the cache {HF_HUB_CACHE}; {remedy}.") from error
            except Exception as error:  # of the network or the Hub
                raise ValueError(f"the checkpoint {name} cannot be fetched ({brief(error)}); {remedy}.") from error
        weights = sorted(folder.glob(WEIGHTS))
        if missing := [file for file in needed if not (folder / file).is_file()] or ([] if weights else [WEIGHTS]):
            raise ValueError(f"the checkpoint {name} misses {', '.join(missing)} in {folder}; {remedy}.")
        try:
            found = json.loads((folder / "config.json").read_text()).get("model_type")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{folder / 'config.json'} is damaged ({brief(error)}); {remedy}.") from error
        if found != kind:
            raise ValueError(f"the checkpoint {name} is of the kind {found!r}, not {kind!r}; give another with {option}.")
        return cls(name, folder, sha256(weights))

    def model(self, kind: Any, device: torch.device) -> Any:
        """The model, in float32, for inference.

        Raises:
            ValueError: the weights are damaged, or not all there.
        """
        model, info = self._load(kind, dtype=torch.float32, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):  # transformers would take random numbers
            raise ValueError(
                f"the checkpoint {self.name} misses {len(missing)} weights, such as {missing[0]}; fetch it again."
            )
        return model.to(device).eval()

    def processor(self) -> "Processor":
        from transformers import AutoImageProcessor

        return Processor(self._load(AutoImageProcessor, backend="pil"))

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self._load(AutoTokenizer)

    def _load(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self.folder, **options)
        except Exception as error:  # whatever a damaged file makes transformers raise
            raise ValueError(f"the checkpoint {self.name} cannot be loaded ({brief(error)}); fetch it again.") from error


class Processor:
    """The checkpoint's own way from images to ``pixel_values``, through PIL whatever else is installed, so that numbers of
    several machines compare."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    @property
    def resize(self) -> str:
        """What it does to the size of an image."""
        own = self.processor
        steps = []
        if getattr(own, "do_resize", False):
            steps.append(f"size {dict(own.size)}, resample {int(own.resample)}")
        if getattr(own, "do_center_crop", False):
            steps.append(f"centre crop {dict(own.crop_size)}")
        return f"{type(own).__name__} ({'; '.join(steps) or 'none'})"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Of images (b, 1 or 3, H, W), float in [0, 1]."""
        rgb = (255 * images.expand(-1, 3, -1, -1)).round().to(torch.uint8).cpu()
        found = self.processor(images=list(rgb.numpy()), return_tensors="pt", input_data_format="channels_first")
        return found["pixel_values"]


def sha256(files: Iterable[Path]) -> str:
    """Of the contents of files, one after another."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()
