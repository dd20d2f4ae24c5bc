"""Images in ``.npy`` and ``.npz`` files, read a batch at a time: those of ADM's reference sets do not fit everywhere."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ..errors import brief

NAMES = ("images", "x_train", "arr_0")  # of the member that holds the images; the last is numpy's own, and ADM's
REMEDY = (
    "give an .npz file with uint8 'images' (or 'x_train', 'arr_0'), or an .npy file, (n, H, W) or (n, H, W, 3), or a folder "
    "of pictures"
)


@dataclass(frozen=True)
class ImageArray:
    """uint8 images (n, H, W) or (n, H, W, 3) in a file, of which only the header has been read; ``member`` of an ``.npz``."""

    path: Path
    member: str | None
    shape: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> "ImageArray":
        """
        Raises:
            ValueError: unreadable, or of another type or shape.
        """
        try:
            member = None
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    held = archive.namelist()
                member = next(f"{name}.npy" for name in NAMES if f"{name}.npy" in held)
            with _stream(path, member) as file:
                shape, by_column, dtype = _header(file)
        except StopIteration:
            raise ValueError(f"{path} holds {', '.join(held) or 'nothing'}, no images; {REMEDY}.") from None
        except Exception as error:  # a damaged archive raises anything from BadZipFile to zlib.error
            raise ValueError(f"the images in {path} cannot be read ({brief(error)}); {REMEDY}.") from error
        if dtype != np.uint8 or by_column or len(shape) not in (3, 4) or shape[3:] not in ((), (3,)) or 0 in shape:
            raise ValueError(f"the images in {path} are {dtype} {shape}; {REMEDY}.")
        return cls(path, member, shape)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """uint8 (b, H, W) or (b, H, W, 3), at most ``size`` images each.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with _stream(self.path, self.member) as file:
                _header(file)
                for start in range(0, self.shape[0], size):
                    images = np.empty((min(size, self.shape[0] - start), *self.shape[1:]), np.uint8)
                    if file.readinto(images.data.cast("B")) != images.nbytes:  # type: ignore[attr-defined]
                        raise EOFError("it ends too early")
                    yield images
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"the images in {self.path} are damaged ({brief(error)}); copy the file again.") from error

    def read(self) -> np.ndarray:
        """All of them."""
        return next(self.batches(self.shape[0]))


@contextmanager
def _stream(path: Path, member: str | None) -> Iterator[IO[bytes]]:
    if member is None:
        with path.open("rb") as file:
            yield file
    else:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield file


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first index runs fastest, and dtype; the stream stands at the data afterwards."""
    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    return read(file)
