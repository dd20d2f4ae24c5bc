"""Copies of training images by several measures, each next to the share of real images that it would call copies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..features.feature_space import FeatureSpace
from ..memorization.copying import authentic, calibrated_l2, copying_statistic
from ..memorization.fraction import (
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
        self.training, self.distinct = (images, features), distinct
        transformed = TransformedImages(images, distinct)
        self.measures: dict[str, Callable[[torch.Tensor, torch.Tensor], Memorization]] = {
            "pixels": lambda x, _: measure_memorization(x, images, "pixels", threshold, distinct),
            "transformed": lambda x, _: transformed(x, threshold),
        }
        if not space.name.startswith("pixels"):
            self.measures["features"] = lambda _, f: measure_memorization(f, features, space.name, threshold, distinct)
        self.equal = 0
        self.real: dict[str, _Found] = {}
        if held_out is not None:
            unseen = self.measures["pixels"](*held_out).distances[:, 0] > 0
            self.equal = int((~unseen).sum())
            if unseen.sum() >= FEWEST:
                self.real = self._find(*(numbers[unseen] for numbers in held_out))

    def __call__(self, images: torch.Tensor, features: torch.Tensor) -> dict[str, Any]:
        """What each measure finds in samples (B, C, H, W) with their features (B, d), for ``report.json``."""
        return {name: _summary(found, self.real.get(name)) for name, found in self._find(images, features).items()}

    def _find(self, images: torch.Tensor, features: torch.Tensor) -> dict[str, "_Found"]:
        numbers = {"pixels": (images, self.training[0]), "features": (features, self.training[1])}
        found = {}
        for name, measure in self.measures.items():
            near = measure(images, features)
            of_training = lambda i, measure=measure: measure(*(part[i] for part in self.training))  # noqa: E731
            calibrated = None
            if name in numbers:
                own, known = numbers[name]
                calibrated = calibrated_l2(near.distances[:, 0], own, known[self.distinct])
            found[name] = _Found(near, authentic(near, of_training), calibrated)
        return found


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
