"""What a set of samples is worth: F_mem in pixels, Frechet distance in classifier features, class accuracy."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.science.fashion_mnist import Classifier
from benchmarks.science.laboratory import NUM_CLASSES
from diffusers_kts.features.frechet import FeatureStatistics, frechet_distance
from diffusers_kts.memorization.fraction import MemorizedFraction, measure_memorization, memorized_fraction


@dataclass(frozen=True)
class Verdict:
    """One sampler over all seeds.

    Attributes:
        f_mem: of all samples together, with the exact 95 % interval; ``f_mem_by_seed`` each seed alone.
        frechet_by_seed: distance of each seed's samples to the real test images; ``frechet`` is their mean.
        accuracy: share of samples that the classifier takes for the class asked for.
    """

    f_mem: MemorizedFraction
    f_mem_by_seed: list[float]
    frechet_by_seed: list[float]
    accuracy: float

    @property
    def frechet(self) -> float:
        return float(np.mean(self.frechet_by_seed))

    def cells(self) -> list[str]:
        """F_mem in per cent with its interval and the seeds' spread, FD with the seeds' spread, accuracy."""
        f = self.f_mem
        return [
            f"{f.fraction:.1%} ({f.low:.1%} - {f.high:.1%})",
            f"{np.ptp(self.f_mem_by_seed):.1%}",
            f"{self.frechet:.2f}",
            f"{np.ptp(self.frechet_by_seed):.2f}",
            f"{self.accuracy:.1%}",
        ]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"frechet": self.frechet}


CELLS = ["F_mem (95 %)", "spread of the seeds", "FD", "spread of the seeds", "class accuracy"]


class Judge:
    """Judges images (B, 1, 28, 28) of several seeds against the training set of their model and the real test images."""

    def __init__(self, classifier: Classifier, real: torch.Tensor) -> None:
        self.classifier, self.reference = classifier, FeatureStatistics.of(classifier.features(real))

    def frechet(self, images: torch.Tensor) -> float:
        return frechet_distance(self.classifier.features(images), self.reference)

    def __call__(self, images: list[torch.Tensor], training: torch.Tensor) -> Verdict:
        hits = [measure_memorization(part, training).is_memorized for part in images]
        right = [self.classifier.predict(part) == torch.arange(len(part)) % NUM_CLASSES for part in images]
        return Verdict(
            memorized_fraction(torch.cat(hits)),
            [hit.double().mean().item() for hit in hits],
            [self.frechet(part) for part in images],
            torch.cat(right).double().mean().item(),
        )
