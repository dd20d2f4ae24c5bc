"""A set of images of one size, read a batch at a time, from whatever holds it: a folder of pictures, an output of ``kts
generate`` or a data set of `datasets` in each of their forms, an ``.npy`` or ``.npz`` file."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import brief
from .arrays import ImageArray
from .folders import Reader, array_reader, folder_reader
from .pictures import SUFFIXES, Picture, check_still, fitted, is_grey, turned_size

# columns of an output's rows that are kept, with their type: what was asked for, and the energies
KEPT: dict[str, type | tuple[type, ...]] = {
    "index": int, "prompt": str, "class_name": str, "path_energy_total": (int, float), "path_energy_early": (int, float),
    "path_energy_late": (int, float), "per_dim": (int, float), "excess": (int, float),
}  # fmt: skip


@dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    Attributes:
        path (`Path`): where they lie.
        names (`list[str]`): of each.
        rows (`list`): metadata of each, the columns `KEPT`; empty for images without any.
        shape (`tuple[int, int, int]`): channels (1 if all are grey, else 3), height, width, as `batches` gives them.
        resize (`str`): what was done to bring them to that size.
        pictures (`Callable`): starts reading them, in order.
    """

    path: Path
    names: list[str]
    rows: list[dict[str, Any]]
    shape: tuple[int, int, int]
    resize: str
    pictures: Reader

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """uint8 (b, C, H, W), at most ``size`` each; the next batch is decoded while the caller works on this one.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        waiting: deque[list[Any]] = deque()
        with ThreadPoolExecutor() as pool:
            pictures = self.pictures()
            while part := list(islice(pictures, size)):
                waiting.append([pool.submit(self._pixels, picture) for picture in part])
                if len(waiting) == 2:
                    yield torch.stack([pixels.result() for pixels in waiting.popleft()])
            for decoding in waiting:
                yield torch.stack([pixels.result() for pixels in decoding])

    def _pixels(self, picture: Picture) -> torch.Tensor:
        try:
            with picture.open() as opened:
                pixels = np.array(fitted(opened, self.shape))
        except Exception as error:  # a damaged picture raises anything
            raise ValueError(_unreadable(picture, self.path, error)) from error
        return torch.from_numpy(pixels if self.shape[0] == 3 else pixels[..., None]).permute(2, 0, 1)


def open_images(path: Path, image_size: int | tuple[int, int] | None = None, channels: int | None = None) -> ImageSet:
    """Look at a set without decoding it: only the headers of its pictures are read.

    Every picture is turned as its camera says, which torch-fidelity does not do, and 16-bit grey is scaled to 8 bits, which
    torch-fidelity clips. Of a folder of pictures, all of `SUFFIXES` count, below it too; torch-fidelity counts ``.webp``,
    ``.bmp`` and ``.tif`` only with ``--samples-find-ext``, folders below only with ``--samples-find-deep``, and hidden files,
    which are left out here.

    Args:
        path (`Path`): a folder with ``metadata.jsonl``, with WebDataset shards ``shards/*.tar`` or Parquet files
            ``data/*.parquet``, as ``kts generate`` and `datasets` write them; any other folder of pictures, read in
            torch-fidelity's order; or a file as `ImageArray` reads.
        image_size (`int` or `tuple[int, int]`, *optional*): crop every image to the middle and scale it to a square of this
            side, or to (height, width).
        channels (`int`, *optional*): turn every image into grey (1) or RGB (3); by default RGB if one has colors.

    Raises:
        ValueError: nothing there, unreadable, pictures of several sizes, animations, or videos.
    """
    if not path.exists():
        raise ValueError(f"there is nothing at {path}; give a folder of pictures, an .npz or an .npy file.")
    rows: list[dict[str, Any]] = []
    if path.is_dir():
        pictures = folder_reader(path)
        names, rows, found, (height, width) = _look(path, pictures(), image_size is not None)
    else:
        array = ImageArray.open(path)
        found, (height, width) = (1 if len(array.shape) == 3 else 3), array.shape[1:3]
        names = [f"{path.name}[{i}]" for i in range(array.shape[0])]
        pictures = array_reader(array, names)
    resize, wanted = "none", (image_size, image_size) if isinstance(image_size, int) else image_size
    if wanted is not None and (height, width) != wanted:
        height, width = wanted
        resize = f"cropped to the middle and scaled to {height}x{width}, bilinear with antialiasing (PIL)"
    return ImageSet(path, names, rows, (channels or found, height, width), resize, pictures)


def _look(
    path: Path, pictures: Iterator[Picture], may_differ: bool
) -> tuple[list[str], list[dict[str, Any]], int, tuple[int, int]]:
    """Names, rows, channels, and (height, width), which are 0 where sizes differ, as they then may."""
    names, rows, grey, sizes = [], [], True, dict[tuple[int, int], str]()
    for picture in pictures:
        if picture.row.get("frame") is not None or picture.name.endswith(".mp4"):
            raise ValueError(f"{path} holds videos; only pictures can be measured.")
        try:
            with picture.open() as opened:
                check_still(opened)
                sizes[turned_size(opened)] = picture.name
                grey &= is_grey(opened)
        except Exception as error:  # a damaged picture raises anything
            raise ValueError(_unreadable(picture, path, error)) from error
        names.append(picture.name)
        rows.append(_kept(picture, path))
    if not names:
        raise ValueError(f"{path} holds no pictures ({', '.join(SUFFIXES)}); give a folder that does.")
    if len(sizes) > 1 and not may_differ:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise ValueError(
            f"{path} holds pictures of {len(sizes)} sizes ({first} is {a[0]}x{a[1]}, {second} {b[0]}x{b[1]}); crop and scale "
            "all to one with --image-size."
        )
    width, height = next(iter(sizes)) if len(sizes) == 1 else (0, 0)
    return names, rows if any(rows) else [], 1 if grey else 3, (height, width)


def _kept(picture: Picture, path: Path) -> dict[str, Any]:
    """The columns `KEPT` of a picture's row; of a list of captions the first."""
    row = {name: picture.row[name] for name in KEPT if picture.row.get(name) is not None}
    if isinstance(row.get("prompt"), list) and row["prompt"]:
        row["prompt"] = row["prompt"][0]
    for name, value in row.items():
        if not isinstance(value, KEPT[name]) or isinstance(value, bool):
            raise ValueError(f"{name} of {picture.name:.200} in {path} is {value!r:.60}; give {_named(KEPT[name])}.")
    return row


def _named(kind: type | tuple[type, ...]) -> str:
    return {str: "text", int: "a whole number"}.get(kind, "a number")  # type: ignore[arg-type]


def _unreadable(picture: Picture, path: Path, error: Exception) -> str:
    return f"{picture.name:.200} in {path} cannot be read as a picture ({brief(error)}); repair or remove it."
