"""What an audit finds in its samples: memorization, quality, energies, and whether a trajectory tells what is memorized."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import roc_auc_score

from ..features.feature_space import FeatureSpace
from ..features.frechet import (
    DensityCoverage,
    FeatureStatistics,
    PrecisionRecall,
    density_coverage,
    frechet_distance,
    precision_recall,
)
from ..kpe.trace import SETTLED, KPETrace
from ..memorization.controls import net_displacement
from ..memorization.detector_fit import Z, auc_error
from ..memorization.fraction import (
    Memorization,
    MemorizedFraction,
    PairedDifference,
    bootstrap_interval,
    measure_memorization,
    paired_difference,
)
from .copies import CopyMeasures
from .sampling import SAMPLERS, Batch
from .training import TrainingImages

MANIFOLD_K = 3  # nearest neighbor that sets the radius in precision and recall, the paper's
_DECILES = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
# a number per sample and trajectory, (B,); higher means nothing by itself: the AUC says which way it leans
STATISTICS: dict[str, Callable[[KPETrace], torch.Tensor]] = {
    "path energy": lambda trace: trace.path_energy.total,
    "early energy": lambda trace: trace.path_energy.early,
    "late energy": lambda trace: trace.path_energy.late,
    "late share of energy": lambda trace: trace.path_energy.late / trace.path_energy.total,
    "peak power": lambda trace: trace.path_power.amax(1),
    "last power": lambda trace: trace.path_power[:, -1],
    "late change of the data estimate": lambda trace: trace.estimate_change(SETTLED),
    "settling": lambda trace: trace.settling,
}


@dataclass(frozen=True)
class Separation:
    """How well a statistic tells memorized samples (more of it) from others: ``auc`` .5 is not at all, below .5 it is less of
    it that tells. The standard error is Hanley and McNeil's (1982)."""

    auc: float
    standard_error: float
    median_memorized: float
    median_other: float

    def interval(self, z: float = Z) -> tuple[float, float]:
        return max(0.0, self.auc - z * self.standard_error), min(1.0, self.auc + z * self.standard_error)


@dataclass
class Findings:
    """What was measured of one sampler; ``trace`` and what follows from it is None for samples made from others'."""

    heading: str
    images: torch.Tensor
    trace: KPETrace | None
    memorization: Memorization
    bootstrap: tuple[float, float]
    against_plain: PairedDifference | None
    frechet_distance: float
    manifold: PrecisionRecall
    support: DensityCoverage
    statistics: dict[str, torch.Tensor]
    separations: dict[str, Separation]
    copies: dict[str, Any] | None = None  # by further measures, of `CopyMeasures`

    @property
    def f_mem(self) -> MemorizedFraction:
        return self.memorization.f_mem

    @property
    def network_calls(self) -> int | None:
        return self.trace.num_steps if self.trace is not None else None

    @property
    def net_displacement(self) -> float | None:
        return net_displacement(self.trace.gains, self.trace.sigmas) if self.trace is not None else None

    def summary(self) -> dict[str, Any]:
        """For ``report.json``."""
        energies, excess, shaping = {}, None, None
        if self.trace is not None:
            shaping = {key: value for key, value in self.trace.settings.items() if key != "scheduler"}
            parts = {part: deciles(getattr(self.trace.path_energy.per_dim, part)) for part in ("total", "early", "late")}
            energies = {part: found for part, found in parts.items() if found}
            excess = deciles(self.trace.excess_per_dim) if self.trace.displacement is not None else None
        return {
            "heading": self.heading,
            "shaping": shaping,
            "network_calls": self.network_calls,
            "net_displacement": self.net_displacement,
            "f_mem": vars(self.f_mem) | {"fraction": self.f_mem.fraction, "bootstrap": list(self.bootstrap)},
            "against_plain": vars(self.against_plain) if self.against_plain else None,
            "copies": self.copies,
            "frechet_distance": self.frechet_distance,
            "precision": self.manifold.precision,
            "recall": self.manifold.recall,
            "density": self.support.density,
            "coverage": self.support.coverage,
            "path_energy_per_dim": energies or None,
            "excess_per_dim": excess,
            "separations": {name: vars(s) | {"interval": list(s.interval())} for name, s in self.separations.items()},
        }


def deciles(values: torch.Tensor) -> dict[str, float] | None:
    """The first decile, the median and the ninth of (B,) numbers, without those that are not finite: such samples are marked
    in ``samples.parquet``."""
    finite = values[values.isfinite()].double()
    return dict(zip(("p10", "median", "p90"), finite.quantile(_DECILES).tolist(), strict=True)) if len(finite) else None


@dataclass(frozen=True)
class Yardsticks:
    """What samples are held against: training images, which of them are distinct, and features of these and of real images;
    neighbors are sought in pixels or among features."""

    training: torch.Tensor
    distinct: torch.Tensor
    training_features: torch.Tensor
    space: FeatureSpace
    real: FeatureStatistics
    real_features: torch.Tensor
    neighbors_in_features: bool

    @classmethod
    def of(
        cls, training: TrainingImages, real: torch.Tensor, space: FeatureSpace, neighbors_in_features: bool
    ) -> "Yardsticks":
        """
        Raises:
            ValueError: too few images, too few distinct ones, or the network does not fit them.
        """
        if len(real) <= MANIFOLD_K:
            raise ValueError(f"there are {len(real)} reference images; give more than {MANIFOLD_K}.")
        features, images = space(real), training.images
        of_training = features if real is images else space(images)
        statistics = FeatureStatistics.of(features)
        yardsticks = cls(images, training.distinct, of_training, space, statistics, features, neighbors_in_features)
        yardsticks.memorization(real[:1], features[:1], 1.0)  # refuses now what would fail once all is drawn
        return yardsticks

    def memorization(self, images: torch.Tensor, features: torch.Tensor, threshold: float) -> Memorization:
        if self.neighbors_in_features:
            return measure_memorization(features, self.training_features, self.space.name, threshold, self.distinct)
        return measure_memorization(images, self.training, "pixels", threshold, self.distinct)


def measure(
    images: Mapping[str, torch.Tensor],
    traces: Mapping[str, KPETrace],
    yardsticks: Yardsticks,
    headings: Mapping[str, str],
    threshold: float,
    seed: int,
    copies: CopyMeasures,
    advance: Callable[[], Any] = lambda: None,
) -> dict[str, Findings]:
    """Findings of every sampler, "euler" first, from images of the same noises; of it copies, too."""
    found: dict[str, Findings] = {}
    for name in SAMPLERS:
        drawn, plain = Batch(images[name], traces.get(name)), found.get("euler")
        found[name] = measure_sampler(headings[name], drawn, yardsticks, threshold, seed, plain, None if plain else copies)
        advance()
    return found


def measure_sampler(
    heading: str,
    drawn: Batch,
    yardsticks: Yardsticks,
    threshold: float,
    seed: int,
    plain: Findings | None = None,
    copies: CopyMeasures | None = None,
) -> Findings:
    """Findings of one sampler; ``plain`` are those of the sampler that it is compared with, from the same noises; copies are
    sought by further measures where they are given."""
    images, trace = drawn.images, drawn.trace
    order = torch.randperm(len(yardsticks.real_features), generator=torch.Generator().manual_seed(seed))
    real = yardsticks.real_features[order[: len(images)]]  # as many as there are samples
    features = yardsticks.space(images)
    memorization = yardsticks.memorization(images, features, threshold)
    hits = memorization.is_memorized
    statistics = {key: statistic(trace) for key, statistic in STATISTICS.items()} if trace is not None else {}
    separations = {key: separate(values, hits) for key, values in statistics.items()}
    return Findings(
        heading,
        images,
        trace,
        memorization,
        bootstrap_interval(hits, seed=seed),
        paired_difference(hits, plain.memorization.is_memorized, seed=seed) if plain else None,
        frechet_distance(features, yardsticks.real),
        precision_recall(features, real, MANIFOLD_K),
        density_coverage(features, real, MANIFOLD_K),
        statistics,
        {key: separation for key, separation in separations.items() if separation is not None},
        copies(images, features) if copies else None,
    )


def separate(values: torch.Tensor, is_memorized: torch.Tensor) -> Separation | None:
    """None where a group is empty; samples whose statistic is not finite are left out."""
    finite = values.isfinite()
    values, is_memorized = values[finite].double(), is_memorized[finite]
    m, n = int(is_memorized.sum()), int((~is_memorized).sum())
    if not m or not n:
        return None
    auc = float(roc_auc_score(is_memorized.numpy(), values.numpy()))
    medians = float(values[is_memorized].median()), float(values[~is_memorized].median())
    return Separation(auc, auc_error(auc, m, n), *medians)
