"""Copies of training images by several measures, each next to the share of real images that it would call copies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..features.feature_space import FeatureSpace
from ..memorization.copying import authentic, calibrated_l2, copying_statistic
from ..memorization.fraction import (
    THRESHOLD,
    Memorization,
    MemorizedFraction,
    calibrated_threshold,
    measure_memorization,
    memorized_fraction,
    ratio,
)
from ..memorization.transformed import TransformedImages
from .training import TrainingImages

UNKNOWN = "–"
FEWEST = 20  # real images to calibrate with
Search = Callable[[torch.Tensor], Memorization]


def searches(
    images: torch.Tensor, features: torch.Tensor, space: FeatureSpace, distinct: torch.Tensor, threshold: float = THRESHOLD
) -> dict[str, Search]:
    """What finds the nearest training images, by name: "pixels" and "transformed" of samples (B, C, H, W), "features" of their
    features (B, d), unless ``space`` is of pixels."""
    transformed = TransformedImages(images, distinct)
    found: dict[str, Search] = {
        "pixels": lambda x: measure_memorization(x, images, "pixels", threshold, distinct),
        "transformed": lambda x: transformed(x, threshold),
    }
    if not space.name.startswith("pixels"):
        found["features"] = lambda x: measure_memorization(x, features, space.name, threshold, distinct)
    return found


class CopyMeasures:
    """Measures of copies: in pixels, up to flips, shifts, crops and color, and in features where there is a network.

    Args:
        training (`TrainingImages`): which may be copied.
        features (`torch.Tensor`, (m, d)): of the training images.
        space (`FeatureSpace`): of the audit; pixels are no further measure.
        threshold (`float`): of d1 / d2.
        held_out (`tuple`, *optional*): real images (n, C, H, W) that the model has not seen, and their features (n, d).
    """

    def __init__(
        self,
        training: TrainingImages,
        features: torch.Tensor,
        space: FeatureSpace,
        threshold: float,
        held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        images, distinct = training.images, training.distinct
        self.measures = {
            name: _Measure(search, features if name == "features" else images, distinct, name != "transformed")
            for name, search in searches(images, features, space, distinct, threshold).items()
        }
        self.equal = 0
        self.real: dict[str, _Found] = {}
        if held_out is not None:
            unseen = self.measures["pixels"].search(held_out[0]).distances[:, 0] > 0
            self.equal = int((~unseen).sum())
            if unseen.sum() >= FEWEST:
                self.real = self._find(*(numbers[unseen] for numbers in held_out))

    def __call__(self, images: torch.Tensor, features: torch.Tensor) -> dict[str, Any]:
        """What each measure finds in samples (B, C, H, W) with their features (B, d), for ``report.json``."""
        return {name: _summary(found, self.real.get(name)) for name, found in self._find(images, features).items()}

    def _find(self, images: torch.Tensor, features: torch.Tensor) -> dict[str, "_Found"]:
        return {name: measure(features if name == "features" else images) for name, measure in self.measures.items()}


class _Measure:
    """A search, and what it finds of the training numbers (n, ...) themselves, which is kept."""

    def __init__(self, search: Search, training: torch.Tensor, distinct: torch.Tensor, in_l2: bool) -> None:
        self.search, self.training = search, training
        whole = len(distinct) == len(training)
        self.distinct = (training if whole else training[distinct]) if in_l2 else None
        self.spacings = training.new_full((len(training),), torch.nan)

    def __call__(self, numbers: torch.Tensor) -> "_Found":
        near = self.search(numbers)
        calibrated = None if self.distinct is None else calibrated_l2(near.distances[:, 0], numbers, self.distinct)
        return _Found(near, authentic(near, self._spacing), calibrated)

    def _spacing(self, images: torch.Tensor) -> torch.Tensor:
        """(m,) distances of training images to the nearest other one."""
        new = images[self.spacings[images].isnan()]
        if len(new):
            self.spacings[new] = self.search(self.training[new]).distances[:, 1]  # the first is the image itself
        return self.spacings[images]


@dataclass(frozen=True)
class _Found:
    """What a measure finds in images."""

    memorization: Memorization
    is_authentic: torch.Tensor
    calibrated_l2: torch.Tensor | None

    def published(self) -> dict[str, Any]:
        """AuthPct, and the share whose calibrated L2 is below 1."""
        below = None if self.calibrated_l2 is None else _share(memorized_fraction(self.calibrated_l2 < 1))
        return {"authpct": _share(memorized_fraction(self.is_authentic)), "calibrated_l2": below}


def _summary(sampled: _Found, real: _Found | None) -> dict[str, Any]:
    near, known = sampled.memorization, real.memorization if real else None
    found: dict[str, Any] = {"space": near.space, "samples": _share(near.f_mem)}
    of_samples, of_real = sampled.published(), real.published() if real else {}
    for name, share in of_samples.items():
        found[name] = None if share is None else {"samples": share, "real": of_real.get(name)}
    if known is None:
        return found | {"real": None, "calibrated": None, "c_t": None}
    limit = calibrated_threshold(known.distances)
    called = memorized_fraction(ratio(near.distances) < limit)
    c_t = copying_statistic(near.distances[:, 0], known.distances[:, 0])
    return found | {"real": _share(known.f_mem), "calibrated": {"threshold": limit} | _share(called), "c_t": c_t}


def copy_rows(copies: dict[str, Any]) -> list[dict[str, str]]:
    """What a report says of them, in words."""
    rows = []
    for found in copies.values():
        calibrated = found["calibrated"]
        rows.append(
            {
                "space": found["space"],
                "samples": in_words(found["samples"]),
                "real": in_words(found["real"]),
                "threshold": f"{calibrated['threshold']:.3g}" if calibrated else UNKNOWN,
                "below": in_words(calibrated),
                "c_t": f"{found['c_t']:.1f}" if calibrated else UNKNOWN,
            }
            | {
                f"{name}_of_{which}": in_words((found[name] or {}).get(which))
                for name in ("authpct", "calibrated_l2")
                for which in ("samples", "real")
            }
        )
    return rows


def in_words(share: dict[str, Any] | None) -> str:
    """A share of ``report.json`` with its interval."""
    if share is None:
        return UNKNOWN
    return MemorizedFraction(**{name: share[name] for name in ("count", "n", "low", "high")}).in_words


def _share(f: MemorizedFraction) -> dict[str, Any]:
    return vars(f) | {"fraction": f.fraction}
