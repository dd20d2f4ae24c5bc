"""Copies of training images by several measures, each next to the share of real images that it would call copies."""

from collections.abc import Callable
from typing import Any

import torch

from ..features.feature_space import FeatureSpace
from ..memorization.fraction import (
    Memorization,
    MemorizedFraction,
    calibrated_threshold,
    copying_statistic,
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
        held_out (`torch.Tensor`, (n, C, H, W), *optional*): real images that the model has not seen.
        space (`FeatureSpace`): of the audit; pixels are no further measure.
        threshold (`float`): of d1 / d2.
        features (`torch.Tensor`, (m, d), *optional*): of the training images, where they are there already.
    """

    def __init__(
        self,
        training: TrainingImages,
        held_out: torch.Tensor | None,
        space: FeatureSpace,
        threshold: float,
        features: torch.Tensor | None = None,
    ) -> None:
        images, distinct = training.images, training.distinct
        transformed = TransformedImages(images, distinct)
        self.measures: dict[str, Callable[[torch.Tensor], Memorization]] = {
            "pixels": lambda x: measure_memorization(x, images, "pixels", threshold, distinct),
            "transformed": lambda x: transformed(x, threshold),
        }
        if not space.name.startswith("pixels"):
            known = space(images) if features is None else features
            self.measures["features"] = lambda x: measure_memorization(space(x), known, space.name, threshold, distinct)
        self.equal = 0
        self.real: dict[str, Memorization] = {}
        if held_out is not None:
            unseen = self.measures["pixels"](held_out).distances[:, 0] > 0
            self.equal = int((~unseen).sum())
            if unseen.sum() >= FEWEST:
                self.real = {name: measure(held_out[unseen]) for name, measure in self.measures.items()}

    def __call__(self, images: torch.Tensor) -> dict[str, Any]:
        """What each measure finds in samples (B, C, H, W), for ``report.json``."""
        return {name: self._found(measure(images), self.real.get(name)) for name, measure in self.measures.items()}

    def _found(self, sampled: Memorization, real: Memorization | None) -> dict[str, Any]:
        found: dict[str, Any] = {"space": sampled.space, "samples": _share(sampled.f_mem)}
        if real is None:
            return found | {"real": None, "calibrated": None, "c_t": None}
        limit = calibrated_threshold(real.distances)
        called = memorized_fraction(ratio(sampled.distances) < limit)
        c_t = copying_statistic(sampled.distances[:, 0], real.distances[:, 0])
        return found | {"real": _share(real.f_mem), "calibrated": {"threshold": limit} | _share(called), "c_t": c_t}


def copy_rows(copies: dict[str, Any]) -> list[dict[str, str]]:
    """What a report says of them, in words."""
    rows = []
    for found in copies.values():
        real, calibrated = found["real"], found["calibrated"]
        rows.append(
            {
                "space": found["space"],
                "samples": in_words(found["samples"]),
                "real": in_words(real) if real else UNKNOWN,
                "threshold": f"{calibrated['threshold']:.3g}" if calibrated else UNKNOWN,
                "below": in_words(calibrated) if calibrated else UNKNOWN,
                "c_t": f"{found['c_t']:.1f}" if calibrated else UNKNOWN,
            }
        )
    return rows


def in_words(share: dict[str, Any]) -> str:
    """A share of ``report.json`` with its interval."""
    return MemorizedFraction(**{name: share[name] for name in ("count", "n", "low", "high")}).in_words


def _share(f: MemorizedFraction) -> dict[str, Any]:
    return vars(f) | {"fraction": f.fraction}
