"""Feature spaces by name."""

import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import brief
from ..user_functions import load_function
from .checkpoints import sha256
from .efficientnet import CHOICE, EfficientNetLite0
from .feature_space import FeatureSpace
from .inception import Inception

MOST_PIXELS = 4096  # numbers of an image in the space of pixels, whose covariance has as many rows


def feature_space(choice: str, device: torch.device | str = "cpu", shape: tuple[int, int, int] | None = None) -> FeatureSpace:
    """The feature space of that name.

    Args:
        choice (`str`): "pixels"; "inception" (torch-fidelity's, 2048 features, with weights in torch's hub cache);
            "efficientnet-lite0" (1280 features, extra ``audit``); "auto", the first of inception, efficientnet-lite0 and
            pixels that is available; "module:function", a function of images (B, C, H, W) in [0, 1]; or a file, ``.pt2``
            written by `torch.export.save`, any other TorchScript.
        device (`torch.device`): where the network runs.
        shape (`tuple[int, int, int]`, *optional*): (C, H, W) of the images; pixels of large ones are averaged to at most
            4096 numbers.

    Raises:
        ValueError: it is not available, and why.
    """
    device = torch.device(device)
    if choice == "pixels":
        return _pixels(shape)
    if choice == "inception":
        return Inception(device=device).space()
    if choice == CHOICE:
        return EfficientNetLite0(device).space()
    if choice == "auto":
        return _first_available(device, shape)
    if ":" in choice and not Path(choice).exists():
        return FeatureSpace(choice, load_function(choice, "feature network"), device)
    return FeatureSpace(Path(choice).name, _file(Path(choice), device), device, sha256=sha256([Path(choice)]))


def _first_available(device: torch.device, shape: tuple[int, int, int] | None) -> FeatureSpace:
    try:
        return Inception(device=device).space()
    except ValueError as error:
        no_inception = error
    try:
        space = EfficientNetLite0(device).space()
    except ValueError as error:
        space = _pixels(shape)
        why = f"since no feature network is available: {no_inception} {error} Either is a better measure."
    else:
        why = "since Inception is not available; --features inception says what is missing."
    return replace(space, note=f"{space.name}, {why}")


def _pixels(shape: tuple[int, int, int] | None) -> FeatureSpace:
    if shape is None or math.prod(shape) <= MOST_PIXELS:
        return FeatureSpace("pixels", lambda images: images)
    side = 2 ** int(math.log2(math.sqrt(MOST_PIXELS / shape[0])))
    name = f"pixels averaged to {side}x{side}"
    return FeatureSpace(name, lambda images: torch.nn.functional.adaptive_avg_pool2d(images, side), resize=name)


def _file(path: Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    if not path.is_file():
        raise ValueError(
            f"there is no feature network {str(path)!r}; give inception, {CHOICE}, pixels, auto, module:function, or a "
            "TorchScript or .pt2 file."
        )
    remedy = "give a file of torch.jit.save, or a .pt2 of torch.export.save; weights alone are no network"
    if not zipfile.is_zipfile(path):
        raise ValueError(f"feature network {path} cannot be loaded, as it is neither TorchScript nor .pt2; {remedy}.")
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module().to(device)
        return torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # of whatever a file that is something else makes torch raise
        raise ValueError(f"feature network {path} cannot be loaded ({brief(error)}); {remedy}.") from error
