"""The training images of an audit: which occur twice, and which a model gives back most."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..images.training_images import described, load_images
from ..memorization.fraction import Memorization, memorized
from ..memorization.neighbors import equal_images, nearest_neighbors

MOST_COMPARED = 20_000  # images among which pairs that are nearly equal are sought
SIDE = 16  # pixels to which they are averaged for that
REPRODUCED = 8  # images in the list of those given back most


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """The training images.

    Attributes:
        images: (n, C, H, W) in [0, 1].
        names: of each.
        resize: what was done to bring them to this size.
        sha256: of the pixels.
        distinct: (m,) which of them equal no earlier one.
        equal: groups of indices of images that are equal in every pixel.
        close: pairs of indices of distinct images, one of which is nearer to the other than to a third of the distance to any
            third image, averaged to 16 x 16 pixels. None where there are too many images to look.
    """

    images: torch.Tensor
    names: list[str]
    resize: str
    sha256: str
    distinct: torch.Tensor
    equal: list[list[int]]
    close: list[tuple[int, int]] | None

    @classmethod
    def load(cls, path: Path, shape: tuple[int, int, int], resize: bool) -> "TrainingImages":
        """
        Raises:
            ValueError: as `load_images`.
        """
        images = load_images(path, shape, resize)
        groups = equal_images(images)
        distinct = torch.tensor([group[0] for group in groups])
        equal = [group for group in groups if len(group) > 1]
        names, done = described(path, shape)
        return cls(images, names, done, pixels_hash(images), distinct, equal, _close(images, distinct))

    def summary(self) -> dict[str, Any]:
        """For ``report.json``."""
        named = None if self.close is None else [[self.names[i], self.names[j]] for i, j in self.close]
        return {
            "count": len(self.images),
            "distinct": len(self.distinct),
            "equal": [[self.names[i] for i in group] for group in self.equal],
            "nearly_equal": named,
        }

    def most_reproduced(self, memorization: Memorization) -> list[dict[str, Any]]:
        """The training images that most memorized samples are nearest to, with the numbers of these samples."""
        hits = memorization.is_memorized.nonzero().flatten().tolist()
        nearest = memorization.indices[:, 0].tolist()
        return [
            {"training_image": image, "name": self.names[image], "samples": [i for i in hits if nearest[i] == image]}
            for image, _ in Counter(nearest[i] for i in hits).most_common(REPRODUCED)
        ]


def pixels_hash(images: torch.Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()


def _close(images: torch.Tensor, distinct: torch.Tensor) -> list[tuple[int, int]] | None:
    if len(distinct) > MOST_COMPARED:
        return None
    if len(distinct) < 3:
        return []
    side = (min(SIDE, images.shape[2]), min(SIDE, images.shape[3]))
    small = torch.nn.functional.adaptive_avg_pool2d(images[distinct], side)
    distances, indices = nearest_neighbors(small, small, 3)  # among them the image itself, at a distance of 0
    own = torch.arange(len(small))
    other = torch.where(indices[:, 0] == own, indices[:, 1], indices[:, 0])
    pairs = torch.stack([distinct, distinct[other]], 1)[memorized(distances[:, 1:])]
    return sorted({(min(pair), max(pair)) for pair in pairs.tolist()})
