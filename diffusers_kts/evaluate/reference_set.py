"""What samples are evaluated against: images, or statistics of their features, in a file of ours, of ADM or of pytorch-fid."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import brief
from ..features.frechet import FeatureStatistics
from ..features.inception import FEATURES
from ..files import written_together
from ..images.arrays import NAMES
from ..images.image_sets import ImageSet, open_images

SPACES = {"inception": "", "dinov2": "dinov2_", "features": "features_"}  # each with what its names in a file begin with


@dataclass(frozen=True)
class Provenance:
    """Whose features the statistics of a reference are; None where a file does not say.

    Attributes:
        extractor, sha256: the network, and the hash of its weights. n: of how many images. resize: before the network.
    """

    extractor: str | None = None
    sha256: str | None = None
    n: int | None = None
    resize: str | None = None


@dataclass(frozen=True)
class ReferenceSet:
    """Images, or statistics by space (`SPACES`), or both."""

    path: Path
    images: ImageSet | None
    statistics: Mapping[str, tuple[FeatureStatistics, Provenance]]

    @classmethod
    def open(cls, path: Path, image_size: int | None = None) -> "ReferenceSet":
        """
        Args:
            path (`Path`): as `open_images`; or an ``.npz`` with ``mu`` (2048,) and ``sigma`` (2048, 2048) of Inception
                features, as those of ADM and pytorch-fid, with or without images; or one that `save_statistics` wrote.
            image_size (`int`, *optional*): as `open_images`.

        Raises:
            ValueError: as `open_images`, or statistics of another shape.
        """
        if not zipfile.is_zipfile(path):
            return cls(path, open_images(path, image_size), {})
        try:
            with np.load(path) as data:
                said = json.loads(str(data["provenance"])) if "provenance" in data else {}
                statistics = {
                    space: (FeatureStatistics(data[f"{prefix}mu"], data[f"{prefix}sigma"]), Provenance(**said.get(space, {})))
                    for space, prefix in SPACES.items()
                    if f"{prefix}mu" in data and f"{prefix}sigma" in data
                }
                with_images = any(name in data for name in NAMES)
        except Exception as error:  # a damaged archive raises anything from BadZipFile to zlib.error
            raise ValueError(f"the reference {path} cannot be read ({brief(error)}); copy or make it again.") from error
        for space, (found, _) in statistics.items():
            mean, covariance = found.mean, found.covariance
            right = mean.ndim == 1 and covariance.shape == 2 * mean.shape and (space != "inception" or len(mean) == FEATURES)
            if not right or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
                raise ValueError(
                    f"the {space} statistics in {path} are {mean.shape} and {covariance.shape}; they must be finite, (d,) and "
                    f"(d, d), with d = {FEATURES} for Inception."
                )
        images = open_images(path, image_size) if with_images or not statistics else None
        return cls(path, images, statistics)


def save_statistics(path: Path, statistics: Mapping[str, tuple[FeatureStatistics, Provenance]]) -> None:
    """Write an ``.npz`` that `ReferenceSet.open` reads; its Inception part is read by other programs, too."""
    arrays: dict[str, Any] = {"provenance": json.dumps({space: asdict(said) for space, (_, said) in statistics.items()})}
    for space, (found, _) in statistics.items():
        arrays |= {f"{SPACES[space]}mu": found.mean, f"{SPACES[space]}sigma": found.covariance}
    with written_together(path.parent, [path.name]) as partial:
        np.savez(partial / path.name, **arrays)
