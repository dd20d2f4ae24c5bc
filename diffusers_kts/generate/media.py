"""Samples as bytes: PNG with its generation parameters as text, MP4, or frames."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ENDINGS = {"image": "png", "mp4": "mp4", "frames": "png"}


@dataclass
class Sample:
    """One drawn sample: pixels (H, W, C), or (F, H, W, C) of a video, float in [0, 1], and its row of metadata."""

    pixels: np.ndarray
    row: dict[str, Any]


class NotFinite(ArithmeticError):
    """A sample holds NaN or infinity, so that its block is not written."""


def medium(pixels: np.ndarray, video: str) -> str:
    """ "image", "mp4" or "frames"."""
    return "image" if pixels.ndim == 3 else video


def encode(sample: Sample, video: str, fps: int) -> list[bytes]:
    """The files of a sample: one, or one a frame.

    Raises:
        NotFinite: a pixel is NaN or infinite.
    """
    if not np.isfinite(sample.pixels).all():
        raise NotFinite(f"sample {sample.row['index']} has pixels that are not finite; try a wider dtype")
    pixels = (sample.pixels * 255).round().astype(np.uint8)
    kind = medium(pixels, video)
    if kind == "image":
        return [_png(pixels, sample.row)]
    if kind == "frames":
        return [_png(frame, sample.row) for frame in pixels]
    return [_mp4(pixels, fps)]


def _png(pixels: np.ndarray, row: dict[str, Any]) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("parameters", parameters(row, image.size))
    info.add_text("kts", json.dumps(row))
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def parameters(row: dict[str, Any], size: tuple[int, int]) -> str:
    """The generation parameters in the form that image viewers and web interfaces read."""
    head = row.get("prompt", row.get("class_name"))
    negative = f"\nNegative prompt: {row['negative_prompt']}" if row.get("negative_prompt") else ""
    values = {
        "Steps": row["network_calls"],
        "Sampler": row["scheduler"],
        "CFG scale": row["guidance_scale"],
        "Seed": row["generator_seed"],
        "Size": f"{size[0]}x{size[1]}",
        "KPE": f"{row['path_energy_total']:.6g}",
    }
    return f"{head}{negative}\n" + ", ".join(f"{name}: {value}" for name, value in values.items() if value is not None)


def _mp4(frames: np.ndarray, fps: int) -> bytes:
    from diffusers.utils import export_to_video

    if frames.shape[-1] == 1:
        frames = frames.repeat(3, -1)
    block = math.gcd(16, *frames.shape[1:3])  # a larger one would scale the picture
    with TemporaryDirectory(prefix="kts-") as folder:
        path = Path(folder) / "video.mp4"
        export_to_video([Image.fromarray(frame) for frame in frames], str(path), fps=fps, macro_block_size=block)
        return path.read_bytes()
