"""A set of images of one size, read a batch at a time, from whatever holds it: a folder of pictures, an output of ``kts
generate`` in each of its forms, an ``.npy`` or ``.npz`` file."""

import io
import json
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image

from ..errors import brief
from ..generate.assemble import METADATA, assembled
from ..generate.ledger import Ledger
from ..generate.storage import Store
from .arrays import ImageArray
from .training_images import SUFFIXES, fitted

# columns of an output's rows that are kept: what was asked for, and the energies
KEPT = (
    "index", "prompt", "class_name", "path_energy_total", "path_energy_early", "path_energy_late", "per_dim",
)  # fmt: skip
GREY = ("L", "1")
READ_AT_A_TIME = 64


class Picture(NamedTuple):
    """A picture not decoded yet (its file, the bytes of one, or pixels), with its row of metadata."""

    name: str
    data: Path | bytes | np.ndarray
    row: Mapping[str, Any] = {}

    def open(self) -> Image.Image:
        if isinstance(self.data, np.ndarray):
            return Image.fromarray(self.data)
        return Image.open(io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data)


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
    pictures: Callable[[], Iterator[Picture]]

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


def open_images(path: Path, image_size: int | None = None) -> ImageSet:
    """Look at a set without decoding it: only the headers of its pictures are read.

    Args:
        path (`Path`): a folder with ``metadata.jsonl``, with WebDataset shards ``shards/*.tar`` or Parquet files
            ``data/*.parquet``, as ``kts generate`` writes them; any other folder of pictures, read in the order of their
            paths; or a file as `ImageArray` reads.
        image_size (`int`, *optional*): crop every image to the middle and scale it to a square of this side.

    Raises:
        ValueError: nothing there, unreadable, pictures of several sizes, videos, or an output that is not finished.
    """
    if not path.exists():
        raise ValueError(f"there is nothing at {path}; give a folder of pictures, an .npz or an .npy file.")
    if not path.is_dir():
        array = ImageArray.open(path)
        channels, (height, width) = (1 if len(array.shape) == 3 else 3), array.shape[1:3]
        names = [f"{path.name}[{i}]" for i in range(array.shape[0])]
        rows: list[dict[str, Any]] = []

        def pictures() -> Iterator[Picture]:
            number = iter(names)
            for batch in array.batches(READ_AT_A_TIME):
                yield from (Picture(next(number), pixels) for pixels in batch)
    else:
        store = Store(str(path))
        if Ledger(store).manifest() is not None and assembled(store, contents=False) is None:
            raise ValueError(f"{path} is not finished; run its kts generate command again, and it draws what is missing.")
        pictures = _reader(path)
        names, rows, channels, (height, width) = _look(path, pictures(), image_size is not None)
    resize = "none"
    if image_size is not None and (height, width) != (image_size, image_size):
        height = width = image_size
        resize = f"cropped to the middle and scaled to {image_size}x{image_size}, bilinear with antialiasing (PIL)"
    return ImageSet(path, names, rows, (channels, height, width), resize, pictures)


def _look(
    path: Path, pictures: Iterator[Picture], may_differ: bool
) -> tuple[list[str], list[dict[str, Any]], int, tuple[int, int]]:
    """Names, rows, channels, and (height, width), which are 0 where sizes differ, as they then may."""
    names, rows, grey, sizes = [], [], True, dict[tuple[int, int], str]()
    for picture in pictures:
        if picture.row.get("frame") is not None or picture.name.endswith(".mp4"):
            raise ValueError(f"{path} holds videos; evaluation is of pictures.")
        try:
            with picture.open() as opened:
                turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                sizes[opened.size[::-1] if turned else opened.size] = picture.name
                grey &= opened.mode in GREY
        except Exception as error:  # a damaged picture raises anything
            raise ValueError(_unreadable(picture, path, error)) from error
        names.append(picture.name)
        rows.append({name: picture.row[name] for name in KEPT if picture.row.get(name) is not None})
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


def _unreadable(picture: Picture, path: Path, error: Exception) -> str:
    return f"{picture.name} in {path} cannot be read as a picture ({brief(error)}); repair or remove it."


def _reader(folder: Path) -> Callable[[], Iterator[Picture]]:
    if (folder / METADATA).is_file():
        return lambda: _described(folder)
    if shards := sorted(folder.glob("shards/*.tar")):
        return lambda: _shards(shards)
    if tables := sorted(folder.glob("data/*.parquet")):
        return lambda: _tables(tables)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return lambda: (Picture(file.relative_to(folder).as_posix(), file) for file in files)


def _described(folder: Path) -> Iterator[Picture]:
    with (folder / METADATA).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                name = row["file_name"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"line {number} of {folder / METADATA} has no file_name ({brief(error)}); mend it."
                ) from error
            yield Picture(name, folder / name, row)


def _shards(shards: list[Path]) -> Iterator[Picture]:
    """A sample is members with one stem, next to each other: the picture, then its row."""
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                name, data = "", b""
                for member in tar:
                    content = tar.extractfile(member)
                    if content is None:
                        continue  # a folder
                    if not member.name.endswith(".json"):
                        name, data = member.name, content.read()
                    else:
                        yield Picture(name, data, json.load(content))
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"the shard {shard} cannot be read ({brief(error)}); draw or copy it again.") from error


def _tables(files: list[Path]) -> Iterator[Picture]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(READ_AT_A_TIME):
                    for row in batch.to_pylist():
                        media = row["image"] if "image" in row else row["video"]
                        yield Picture(media["path"], media["bytes"], row)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{file} cannot be read ({brief(error)}); draw or copy it again.") from error
