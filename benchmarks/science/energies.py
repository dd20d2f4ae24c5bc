"""Correlations of the path energy, and of its excess, with the density of the training images and with a class score."""

from dataclasses import dataclass, replace

import torch

from benchmarks.science.controlled import Bench
from benchmarks.science.laboratory import NUM_CLASSES, Sampler
from benchmarks.science.significance import Test, rank_correlation
from diffusers_kts.kpe.sums import distance
from diffusers_kts.memorization.neighbors import nearest_neighbors

SUPPORT_NEIGHBOR = 10
GROUPS = 3


@dataclass
class Energies:
    """Energies (B,) of samples by name; their correlations with density, by kind and space of the density; mean class score by
    group of energy."""

    of_samples: dict[str, torch.Tensor]
    density: dict[str, dict[str, Test]]
    score_by_group: dict[str, list[float]]
    score: dict[str, Test]

    @classmethod
    def measure(cls, bench: Bench, sampler: Sampler, count: int) -> "Energies":
        draw, seeds = bench.draw(sampler, count), bench.seeds
        noise = torch.cat([bench.laboratory(count).noise(seed, range(count)) for seed in seeds])
        classes = (torch.arange(count) % NUM_CLASSES).repeat(len(seeds))
        trace = replace(draw.trace(sampler), displacement=distance(draw.x, noise))
        energies = {"path energy": trace.per_dim, "displacement": trace.displacement, "excess": trace.excess}
        classifier, training = bench.judge.classifier, bench.model.training
        spaces = {
            "pixels": (draw.images, training),
            "classifier features": (classifier.features(draw.images), bench.training_features),
        }
        found: dict[str, dict[str, Test]] = {}
        for space, (samples, points) in spaces.items():
            for kind, value in density(samples, points).items():
                name = f"{kind}, {space}"
                found[name] = {
                    f"{name}: {energy}": rank_correlation(f"{name}: {energy}", own, value, classes)
                    for energy, own in energies.items()
                }
        score = classifier.probabilities(draw.images)[range(len(classes)), classes]
        by_group, tests = {}, {}
        for energy in ("path energy", "excess"):
            group = torch.empty(len(classes), dtype=torch.long)
            for label in range(NUM_CLASSES):
                group[classes == label] = groups(energies[energy][classes == label])
            by_group[energy] = [score[group == g].mean().item() for g in range(GROUPS)]
            tests[energy] = rank_correlation(f"class score: {energy}", energies[energy], score, classes)
        return cls(energies, found, by_group, tests)

    @property
    def count(self) -> int:
        return len(self.of_samples["path energy"])

    def tests(self) -> list[Test]:
        return [test for tests in self.density.values() for test in tests.values()] + list(self.score.values())


def density(samples: torch.Tensor, training: torch.Tensor) -> dict[str, torch.Tensor]:
    """Log-density of samples (B, ...) under training points, up to a constant: by the distance to the k-th neighbor, and by a
    Gaussian kernel as wide as the median of those distances."""
    x, y = samples.flatten(1), training.flatten(1).to(samples.dtype)
    radius = nearest_neighbors(x, y, k=SUPPORT_NEIGHBOR)[0][:, -1]
    kernel = [torch.logsumexp(-torch.cdist(part, y).square() / (2 * radius.median() ** 2), 1) for part in x.split(100)]
    return {"kNN": -radius.log(), "KDE": torch.cat(kernel)}


def groups(values: torch.Tensor) -> torch.Tensor:
    """(B,) which of `GROUPS` equal groups each value falls in, from low to high."""
    return values.argsort().argsort() * GROUPS // len(values)
