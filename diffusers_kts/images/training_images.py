"""Training images from a file or a folder, as the float images that samples are compared with."""

from pathlib import Path

import torch

from .arrays import REMEDY, ImageArray
from .folders import READ_AT_A_TIME
from .image_sets import open_images


def load_images(path: Path, shape: tuple[int, int, int], resize: bool = False) -> torch.Tensor:
    """(n, C, H, W) float images in [0, 1] of the ``shape`` (C, H, W) that samples have.

    Args:
        path (`Path`): a file that `ImageArray` reads; or a folder as `open_images` reads it, its pictures turned into grey or
            RGB, cropped to the middle and scaled.
        shape (`tuple[int, int, int]`): one or three channels, height, width.
        resize (`bool`, defaults to False): whether an array of another size may be cropped and scaled as pictures are.

    Raises:
        ValueError: unreadable, fewer than two images, of another type, or of another shape.
    """
    if path.is_dir():
        return _folder(path, shape)
    images = ImageArray.open(path).read()
    if len(images) < 2:
        raise ValueError(f"the images in {path} are {images.shape}; {REMEDY} and n >= 2.")
    tensor = torch.from_numpy(images).float() / 255
    tensor = tensor[:, None] if images.ndim == 3 else tensor.permute(0, 3, 1, 2)
    if resize and tensor.shape[1] == shape[0]:
        tensor = resized(tensor, shape[1:])
    if tensor.shape[1:] != shape:
        raise ValueError(
            f"the training images in {path} are {tuple(tensor.shape[1:])}, the model draws {tuple(shape)}; give its own."
        )
    return tensor


def described(path: Path, shape: tuple[int, int, int]) -> tuple[list[str], str]:
    """The names of the images that `load_images` reads, in its order: a file's name with the number, or those of pictures; and
    what is done to the size of images."""
    found = open_images(path, shape[1:], shape[0])
    return found.names, found.resize if path.is_dir() else found.resize.replace("(PIL)", "(torch)")  # as `resized` does it


def resized(images: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """(B, C, H, W) images cropped to the middle and scaled to ``size``; the same images where they have it."""
    height, width = images.shape[2:]
    if (height, width) == tuple(size):
        return images
    scale = min(height / size[0], width / size[1])
    h, w = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - h) // 2, (width - w) // 2
    cropped = images[:, :, top : top + h, left : left + w]
    return torch.nn.functional.interpolate(cropped, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def _folder(path: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    images = open_images(path, shape[1:], shape[0])
    if len(images) < 2:
        raise ValueError(f"{path} holds {len(images)} picture; give a folder with at least two.")
    pixels = torch.empty((len(images), *shape), dtype=torch.uint8)
    for start, batch in zip(range(0, len(images), READ_AT_A_TIME), images.batches(READ_AT_A_TIME), strict=True):
        pixels[start : start + len(batch)] = batch
    return pixels.float().div_(255)
