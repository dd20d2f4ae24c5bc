"""Feature spaces: where Frechet distances, precision and recall are measured. Its name belongs to the number."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import brief
from .checkpoints import sha256

BATCH_SIZE = 64


@dataclass(frozen=True)
class FeatureSpace:
    """A network that turns images (B, C, H, W) in [0, 1] into features (B, d), and its name.

    Attributes:
        name (`str`): goes beside every number.
        network (`Callable`): given a batch on ``device``.
        device (`torch.device`): where the network runs.
        note (`str`): why this space, where the user did not choose it.
        sha256 (`str`, *optional*): of the network's weights, where they are a file.
        resize (`str`): what the network itself does to the size of an image.
    """

    name: str
    network: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device = torch.device("cpu")
    note: str = ""
    sha256: str | None = None
    resize: str = "none"

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, d) float32 features on the CPU.

        Raises:
            ValueError: the network fails on these images or returns something else.
        """
        parts = []
        for batch in images.split(BATCH_SIZE):
            try:
                features = self.network(batch.to(self.device))
            except Exception as error:  # the user's own network
                raise ValueError(
                    f"feature network {self.name!r} fails on images {tuple(batch.shape)} ({brief(error)})."
                ) from error
            if not isinstance(features, torch.Tensor) or len(features) != len(batch):
                got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
                raise ValueError(f"feature network {self.name!r} gave {got} for {len(batch)} images; it must give (B, d).")
            parts.append(features.flatten(1).float().cpu())
        return torch.cat(parts)


def feature_space(choice: str, device: torch.device | str = "cpu") -> FeatureSpace:
    """The feature space of that name.

    Args:
        choice (`str`): "pixels"; "inception" (torch-fidelity's, 2048 features, with weights in torch's hub cache); "auto",
            which is inception where available, else pixels; "module:function", a function of images (B, C, H, W) in [0, 1];
            or a file, ``.pt2`` written by `torch.export.save`, any other TorchScript.
        device (`torch.device`): where the network runs.

    Raises:
        ValueError: it is not available, and why.
    """
    from .inception import Inception  # which is itself a space

    device = torch.device(device)
    if choice == "pixels":
        return FeatureSpace("pixels", lambda images: images)
    if choice in ("auto", "inception"):
        try:
            return Inception(device=device).space()
        except ValueError as error:
            if choice == "inception":
                raise
            note = f"pixels, since Inception is not available: {error} Give a network of your own for a better measure."
            return FeatureSpace("pixels", lambda images: images, note=note)
    if ":" in choice and not Path(choice).exists():
        return FeatureSpace(choice, _function(choice), device)
    return FeatureSpace(Path(choice).name, _file(Path(choice), device), device, sha256=sha256([Path(choice)]))


def _function(choice: str) -> Callable[[torch.Tensor], torch.Tensor]:
    module, _, name = choice.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when imported
        raise ValueError(f"feature network {choice!r} cannot be imported ({brief(error)}); give module:function.") from error
    if not callable(function):
        raise ValueError(f"feature network {choice!r} is a {type(function).__name__}; give a function of images (B, C, H, W).")
    if isinstance(function, torch.nn.Module):
        function.eval()
    return function


def _file(path: Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    if not path.is_file():
        raise ValueError(
            f"there is no feature network {str(path)!r}; give pixels, inception, auto, module:function, or a TorchScript or "
            ".pt2 file."
        )
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module().to(device)
        return torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # of whatever a file that is something else makes torch raise
        raise ValueError(f"feature network {path} cannot be loaded ({brief(error)}).") from error
