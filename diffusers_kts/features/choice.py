"""Feature spaces by name."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import brief
from ..user_functions import load_function
from .checkpoints import sha256
from .feature_space import FeatureSpace
from .inception import Inception

MOST_PIXELS = 4096  # numbers of an image in the space of pixels, whose covariance has as many rows


def feature_space(choice: str, device: torch.device | str = "cpu", shape: tuple[int, int, int] | None = None) -> FeatureSpace:
    """The feature space of that name.

    Args:
        choice (`str`): "pixels"; "inception" (torch-fidelity's, 2048 features, with weights in torch's hub cache); "auto",
            which is inception where available, else pixels; "module:function", a function of images (B, C, H, W) in [0, 1];
            or a file, ``.pt2`` written by `torch.export.save`, any other TorchScript.
        device (`torch.device`): where the network runs.
        shape (`tuple[int, int, int]`, *optional*): (C, H, W) of the images; pixels of large ones are averaged to at most
            4096 numbers.

    Raises:
        ValueError: it is not available, and why.
    """
    device = torch.device(device)
    if choice == "pixels":
        return _pixels(shape)
    if choice in ("auto", "inception"):
        try:
            return Inception(device=device).space()
        except ValueError as error:
            if choice == "inception":
                raise
            space = _pixels(shape)
            note = f"{space.name}, since Inception is not available: {error} Another network is a better measure."
            return FeatureSpace(space.name, space.network, note=note)
    if ":" in choice and not Path(choice).exists():
        return FeatureSpace(choice, load_function(choice, "feature network"), device)
    return FeatureSpace(Path(choice).name, _file(Path(choice), device), device, sha256=sha256([Path(choice)]))


def _pixels(shape: tuple[int, int, int] | None) -> FeatureSpace:
    if shape is None or math.prod(shape) <= MOST_PIXELS:
        return FeatureSpace("pixels", lambda images: images)
    side = 2 ** int(math.log2(math.sqrt(MOST_PIXELS / shape[0])))
    name = f"pixels averaged to {side}x{side}"
    return FeatureSpace(name, lambda images: torch.nn.functional.adaptive_avg_pool2d(images, side), resize=name)


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
