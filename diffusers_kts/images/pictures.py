"""One picture: as it is stored, and as 8-bit pixels in grey or RGB."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
OTHER_SUFFIXES = (".gif", ".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tga", ".ppm", ".pgm", ".psd")  # not read
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's others may start another program, as PostScript does
GREY = ("1", "L", "LA")
SIXTEEN_BITS = "I;16"  # with the order of its bytes after it


class Picture(NamedTuple):
    """A picture not decoded yet (its file, the bytes of one, or pixels), with its row of metadata."""

    name: str
    data: Path | bytes | np.ndarray
    row: Mapping[str, Any] = {}

    def open(self) -> Image.Image:
        """Read its header.

        Raises:
            Exception: whatever a damaged picture makes Pillow raise.
        """
        if isinstance(self.data, np.ndarray):
            return Image.fromarray(self.data)
        try:
            return Image.open(io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller") from error


def is_grey(opened: Image.Image) -> bool:
    return opened.mode in GREY or opened.mode.startswith(SIXTEEN_BITS)


def turned_size(opened: Image.Image) -> tuple[int, int]:
    """(width, height) once it is turned as its camera says."""
    quarter = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5 and opened.format != "TIFF"  # which Pillow turns
    return opened.size[::-1] if quarter else opened.size


def check_still(opened: Image.Image) -> None:
    """Raises ValueError for numbers without a known white, and for animations. Only the header is read."""
    if opened.mode in ("F", "I"):
        raise ValueError(
            f"its pixels are {'fractions' if opened.mode == 'F' else '32-bit numbers'}; save it with 8 or 16 bits"
        )
    if opened.format != "MPO" and getattr(opened, "is_animated", False):  # the second picture of an MPO is a preview
        raise ValueError(f"it has {getattr(opened, 'n_frames', 'several')} frames; save one")


def fitted(opened: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3): a picture, turned as its camera says, in grey or RGB, cropped to the middle and scaled.

    16-bit grey is reduced to its higher byte, as Pillow does for 16-bit colors.

    Raises:
        ValueError: parts of it are transparent, so that its colors depend on what is behind it.
    """
    check_still(opened)
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith(SIXTEEN_BITS):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("parts of it are transparent; put it on a background")
    picture = picture.convert("L" if shape[0] == 1 else "RGB")
    if picture.size != (shape[2], shape[1]):
        picture = ImageOps.fit(picture, (shape[2], shape[1]), Image.Resampling.BILINEAR)
    return np.asarray(picture)
