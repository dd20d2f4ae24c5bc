"""A sampler compared with plain sampling from the same noises, and with the controls of its effect."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from benchmarks.science.judge import Judge
from benchmarks.science.laboratory import NUM_CLASSES, Draw, Laboratory, Model, Sampler
from benchmarks.science.significance import Test, f_mem_test, frechet_test, ratio_interval
from diffusers_kts.features.frechet import frechet_distance
from diffusers_kts.memorization.controls import finished, with_equal_blur, with_equal_noise
from diffusers_kts.memorization.fraction import MemorizedFraction, measure_memorization, memorized, memorized_fraction

THRESHOLDS = (1 / 4, 1 / 3, 1 / 2)
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, eq=False)
class Measured:
    """Samples (B): distances (B, 2) to the two nearest distinct training images, in pixels and in classifier features; which
    image is the nearest in pixels, (B,); features (B, 128); and whether the classifier finds the class asked for, (B,)."""

    distances: torch.Tensor
    in_features: torch.Tensor
    nearest: torch.Tensor
    features: torch.Tensor
    right: torch.Tensor

    def memorized(self, threshold: float = 1 / 3) -> torch.Tensor:
        return memorized(self.distances, threshold)

    @cached_property
    def f_mem(self) -> MemorizedFraction:
        return memorized_fraction(self.memorized())

    def kept(self, plain: "Measured") -> float | None:
        """Share of the samples that plain sampling memorized whose nearest training image is still the same."""
        same = (self.nearest == plain.nearest)[plain.memorized()]
        return float(same.double().mean()) if len(same) else None

    def summary(self, judge: Judge) -> dict[str, Any]:
        ratios = self.distances[:, 0] / self.distances[:, 1]
        return {
            "f_mem": {f"{threshold:.3f}": float(self.memorized(threshold).double().mean()) for threshold in THRESHOLDS},
            "f_mem_interval": [self.f_mem.low, self.f_mem.high],
            "f_mem_features": float(memorized(self.in_features).double().mean()),
            "ratio_quantiles": ratios.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist(),
            "frechet": frechet_distance(self.features, judge.reference),
            "class_accuracy": float(self.right.double().mean()),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """A sampler, plain sampling with the same solver, grid and number of calls, and the controls."""

    name: str
    sampler: Sampler
    ours: Measured
    plain: Measured
    controls: dict[str, Measured]
    judge: Judge

    @cached_property
    def f_mem(self) -> Test:
        return f_mem_test(f"{self.name}: F_mem", self.ours.memorized(), self.plain.memorized())

    @cached_property
    def frechet(self) -> Test:
        return frechet_test(f"{self.name}: FD", self.ours.features, self.plain.features, self.judge.reference)

    @cached_property
    def beyond(self) -> dict[str, Test]:
        """F_mem less that of each control."""
        return {
            name: f_mem_test(f"{self.name}: F_mem against {name}", self.ours.memorized(), control.memorized())
            for name, control in self.controls.items()
        }

    @cached_property
    def ratio(self) -> tuple[float, float, float]:
        """F_mem relative to plain sampling, with its interval."""
        return ratio_interval(self.ours.memorized(), self.plain.memorized())

    def tests(self) -> Iterator[Test]:
        yield from (self.f_mem, self.frechet, *self.beyond.values())


class Bench:
    """A model on the bench, with the judge of its samples."""

    def __init__(self, model: Model, judge: Judge, laboratory: Callable[[int], Laboratory], seeds: list[int]) -> None:
        self.model, self.judge, self.laboratory, self.seeds = model, judge, laboratory, seeds
        self.training_features = judge.classifier.features(model.training)

    def draw(self, sampler: Sampler, count: int) -> Draw:
        """The first ``count`` samples of every seed."""
        drawn = Draw.cat([self.laboratory(count).draw(sampler, seed) for seed in self.seeds])
        return replace(drawn, to_pixels=self.model.to_pixels)

    def measure(self, images: torch.Tensor) -> Measured:
        pixels = measure_memorization(images, self.model.training)
        features = self.judge.classifier.features(images)
        near = measure_memorization(features, self.training_features, "classifier features")
        classes = (torch.arange(len(images) // len(self.seeds)) % NUM_CLASSES).repeat(len(self.seeds))
        right = self.judge.classifier.predict(images) == classes
        return Measured(pixels.distances, near.distances, pixels.indices[:, 0], features, right)

    def compare(self, samplers: dict[str, Sampler], count: int, controls: bool) -> dict[str, Comparison]:
        """Each sampler with ``count`` samples of every seed, and with its controls if they are asked for."""
        plain_draws: dict[Sampler, tuple[Draw, Measured]] = {}
        found = {}
        for name, sampler in samplers.items():
            base = Sampler(steps=sampler.steps, grid=sampler.grid, solver=sampler.solver)
            if base not in plain_draws:
                drawn = self.draw(base, count)
                plain_draws[base] = drawn, self.measure(drawn.images)
            plain, measured = plain_draws[base]
            ours = self.draw(sampler, count)
            images = self._controls(sampler, plain, ours) if controls else {}
            found[name] = Comparison(
                name, sampler, self.measure(ours.images), measured, {k: self.measure(v) for k, v in images.items()}, self.judge
            )
        return found

    def _controls(self, sampler: Sampler, plain: Draw, ours: Draw) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        if sampler.touchdown is None:
            done = finished(ours.x, ours.v, sampler.gains, sampler.levels)
        else:
            done = moved_on(ours, plain.x, sampler.touchdown)
        latents = {
            "equal noise": with_equal_noise(plain.x, ours.x, generator),
            "equal blur": with_equal_blur(plain.x, ours.x),
            "finished": done,
        }
        return {name: self.model.to_pixels(x) for name, x in latents.items()}


def moved_on(ours: Draw, plain: torch.Tensor, touchdown: float) -> torch.Tensor:
    """A touchdown's end, moved on in the direction its data estimate last moved, by as much as the plain sample differs."""
    before = ours.estimates[max(t for t in ours.estimates if t < touchdown)]
    direction = torch.nn.functional.normalize((ours.x - before).flatten(1), dim=1)
    missing = (plain - ours.x).flatten(1).norm(dim=1, keepdim=True)
    return ours.x + (missing * direction).reshape(ours.x.shape)
