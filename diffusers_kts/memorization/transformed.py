"""Copies that are not equal in their pixels: nearest training images up to a flip, a small shift or crop, and gain and offset
of each color (ours).

Every image is averaged to a few pixels and brought to mean 0 and deviation 1 in each color, which takes gain and offset out.
A sample, its middle, and the mirror images of both are held against each training image and against windows of it. What
counts is the least distance; d1 / d2 is then read as in `fraction`. How many planted copies it finds is measured in
``benchmarks/science/planted_copies.py``.
"""

import itertools
from collections.abc import Iterator

import torch

from .fraction import THRESHOLD, Memorization, memorized
from .neighbors import check_images, distinct_images, nearest_neighbors

SPACE = "pixels up to flips, small shifts and crops, and color"
SIDE = 8  # pixels to which images are averaged
WINDOWS = ((0.95, 3), (0.88, 5))  # share of an image's sides that a window covers, and how many places it takes in each
FLAT = 0.05  # deviation of a color below which it is not amplified


def measure_transformed(
    samples: torch.Tensor, training: torch.Tensor, threshold: float = THRESHOLD, distinct: torch.Tensor | None = None
) -> Memorization:
    """As `measure_memorization`, of images up to flips, small shifts and crops, and color.

    Args:
        samples (`torch.Tensor`, (B, C, H, W)): images.
        training (`torch.Tensor`, (n, C, H, W)): likewise, on the same scale, from 0 to 1.
        threshold (`float`, defaults to 1/3): the paper's.
        distinct (`torch.Tensor`, (m,), *optional*): which training images to hold the samples against; by default
            `distinct_images` of ``training``.

    Raises:
        TypeError, ValueError: as `nearest_neighbors` and `memorized`, or fewer than two distinct training images.
    """
    return TransformedImages(training, distinct)(samples, threshold)


class TransformedImages:
    """Training images described once, for several calls as those of `measure_transformed`.

    Args:
        training (`torch.Tensor`, (n, C, H, W)): as there.
        distinct (`torch.Tensor`, (m,), *optional*): as there.

    Raises:
        ValueError: fewer than two distinct images.
    """

    def __init__(self, training: torch.Tensor, distinct: torch.Tensor | None = None) -> None:
        self.distinct = distinct_images(training) if distinct is None else distinct
        if len(self.distinct) < 2:
            raise ValueError(
                f"of {len(training)} training images {len(self.distinct)} are distinct; d1 / d2 needs at least two."
            )
        self.training, kept = training, training[self.distinct]
        self.whole = _described(kept)
        self.windows = {share: [_described(window) for window in _windows(kept, share, places)] for share, places in WINDOWS}

    def __call__(self, samples: torch.Tensor, threshold: float = THRESHOLD) -> Memorization:
        """
        Raises:
            TypeError, ValueError: as `measure_transformed`.
        """
        check_images(samples, self.training)
        memorized(samples.new_empty(0, 2), threshold)  # refuses a wrong threshold
        whole = _described(samples)
        found = [_nearest([whole], self.whole)]
        for share, windows in self.windows.items():
            views = [whole, _described(next(_windows(samples, share, 1)))]
            found += [_nearest(views, window) for window in windows]
        d, i = _nearest_two(*(torch.cat(parts, 1) for parts in zip(*found, strict=True)))
        return Memorization(d, self.distinct[i], SPACE, threshold, len(self.training), len(self.distinct))


def _nearest(views: list[torch.Tensor], window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances and indices (B, m): for every view of a sample and its mirror image, the two nearest."""
    both = torch.cat([side for view in views for side in (view, view.flip(3))])
    found = nearest_neighbors(both.flatten(1), window.flatten(1))
    d, i = (torch.cat([*part.chunk(2 * len(views))], 1) for part in found)
    return d, i


def _nearest_two(distances: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least distances (B, 2) to two different images, among those of all views (B, m)."""
    d1, at = distances.min(1, keepdim=True)
    first = indices.gather(1, at)
    d2, at = distances.masked_fill(indices == first, torch.inf).min(1, keepdim=True)
    return torch.cat([d1, d2], 1), torch.cat([first, indices.gather(1, at)], 1)


def _windows(images: torch.Tensor, share: float, places: int) -> Iterator[torch.Tensor]:
    """Windows of the images: in ``places`` times as many places, evenly spread; one is the middle."""
    parts = [max(1, round(share * length)) for length in images.shape[2:]]
    starts = [
        [round((length - part) * (place / (places - 1) if places > 1 else 0.5)) for place in range(places)]
        for length, part in zip(images.shape[2:], parts, strict=True)
    ]
    for top, left in itertools.product(*starts):
        yield images[:, :, top : top + parts[0], left : left + parts[1]]


def _described(images: torch.Tensor) -> torch.Tensor:
    """(B, C, SIDE, SIDE) images scaled to that size, each color with mean 0 and deviation 1."""
    small = torch.nn.functional.interpolate(images.float(), size=SIDE, mode="bilinear", antialias=True)
    centered = small - small.mean((2, 3), keepdim=True)
    return centered / (centered.square().mean((2, 3), keepdim=True) + FLAT**2).sqrt()
