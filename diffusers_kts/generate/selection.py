"""The best of each prompt's candidates by energy, and screening: drop those that rank last after a few steps.

Energy is an aid to ranking, not a score of quality; ``benchmarks/science/generate_screening.py`` measures how far it goes.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ..flow_coordinates import exceeds_one
from ..kpe.trace import KPETrace
from ..presets import PRESETS
from ..sampling.prompts import Prompt
from ..sampling.sampler import Drawn, Sampler
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from ..seeding import sample_seed
from .media import NotFinite
from .plan import Block
from .settings import GenerateSettings


class PartialSchedule(KTSFlowMatchScheduler):
    """Runs a part of the schedule: the steps ``part`` of all that `set_timesteps` plans, beginning from latents that another
    call left behind.

    Attributes:
        part (`slice`): steps to run. whole (`int`): steps of the whole schedule, once set.
        latents (`torch.Tensor`): where the last step ended. begins_at (`torch.Tensor`): what the first step must be given.
    """

    __module__ = KTSFlowMatchScheduler.__module__
    part = slice(None)
    whole = 0
    latents: torch.Tensor | None = None
    begins_at: torch.Tensor | None = None

    @functools.wraps(KTSFlowMatchScheduler.set_timesteps)  # pipelines look at the names of the arguments
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        super().set_timesteps(*args, **kwargs)
        if exceeds_one(self.sigmas):
            raise ValueError("screening needs noise levels up to 1; leave --screen-steps out for this model.")
        self.whole = len(self.timesteps)
        start, stop, _ = self.part.indices(self.whole)
        self.timesteps, self.sigmas = self.timesteps[start:stop], self.sigmas[start : stop + 1]
        self.num_inference_steps = len(self.timesteps)

    @functools.wraps(KTSFlowMatchScheduler.step)
    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        if self.begins_at is not None:
            if not torch.equal(sample, self.begins_at.to(sample.device)):
                raise ValueError("this pipeline does not continue from given latents; leave --screen-steps out.")
            self.begins_at = None
        result = super().step(model_output, timestep, sample, *args, **kwargs)
        self.latents = result[0]
        return result


@dataclass
class Selected:
    """The samples kept of a block, by index, and what was decided about every candidate.

    Attributes:
        ranks: of the samples kept, from 1, among their prompt's candidates that were finished.
        candidates: index, prompt, seed, energy so far (screening), statistic (None if dropped), rank, kept.
        calls, calls_saved: network calls summed over candidates, and how many screening saved.
    """

    indices: list[int]
    ranks: list[int]
    drawn: Drawn
    candidates: list[dict[str, Any]]
    calls: int
    calls_saved: int


class Selector:
    """Draws the candidates of a block and keeps the best ``keep_top`` of every prompt.

    Raises:
        ValueError: the sampler cannot be stopped half-way.
    """

    def __init__(self, model: Sampler, settings: GenerateSettings) -> None:
        self.model, self.settings = model, settings
        self.scheduler: PartialSchedule | None = None
        if settings.screen_steps is not None:
            own = model.own_scheduler
            if settings.shaping is None and type(own) not in (FlowMatchEulerDiscreteScheduler, KTSFlowMatchScheduler):
                raise ValueError(
                    f"screening needs an Euler flow scheduler, this model has a {type(own).__name__}; "
                    "add a --preset (off is plain Euler), or leave --screen-steps out."
                )
            plain = PRESETS["off"] if type(own) is FlowMatchEulerDiscreteScheduler else {}
            self.scheduler = PartialSchedule.from_config(
                own.config, **(settings.shaping.to_dict() if settings.shaping else plain)
            )
            model.pipe.scheduler = self.scheduler

    def trial(self, indices: Sequence[int], prompts: Sequence[Prompt]) -> Drawn:
        """The first two steps at once and one by one, which must agree to the last bit.

        Raises:
            ValueError: they do not, or the schedule is too short to be screened.
        """
        if self.scheduler is None:
            return self.model.trial(indices, prompts)
        try:
            both, _ = self._part(slice(0, 2), indices, prompts)
            _, latents = self._part(slice(0, 1), indices, prompts)
            second, _ = self._part(slice(1, 2), indices, prompts, latents)
        except Exception as error:  # as in Sampler.trial
            raise ValueError(f"{self.model.name} cannot be screened with these settings: {error}") from error
        steps = self.settings.screen_steps
        if steps is not None and steps >= self.scheduler.whole:
            raise ValueError(f"screen_steps is {steps}, but the schedule has {self.scheduler.whole} steps; give fewer.")
        if not np.array_equal(both.pixels, second.pixels, equal_nan=True):
            raise ValueError(f"{self.model.name} draws otherwise when stopped half-way; leave --screen-steps out.")
        return both

    def __call__(self, block: Block, prompts: Sequence[Prompt]) -> Selected:
        """``prompts`` are those of the block's samples."""
        s = self.settings
        indices = list(range(block.start, block.stop))
        alive = list(range(len(indices)))
        so_far: list[float] | None = None
        if self.scheduler is None:
            drawn = _cat([self.model.draw(batch, _of(prompts, batch, block)) for batch in block.batches])
        else:
            drawn, alive, so_far = self._screen(block, prompts)
        values = drawn.trace.to_dict()[s.by]
        finished = [indices[i] for i in alive]
        _check_finite(finished, values)
        ranks = _ranks(finished, values, s.images_per_prompt, s.lowest)
        keep = [i for i, place in enumerate(ranks) if place <= (s.keep_top or 1)]
        place = dict(zip(finished, zip(values, ranks, strict=True), strict=True))
        candidates = []
        for i, index in enumerate(indices):
            value, own = place.get(index, (None, None))
            candidate: dict[str, Any] = {"index": index, "prompt_index": index // s.images_per_prompt}
            candidate |= {"generator_seed": sample_seed(s.seed, index), "energy_so_far": so_far and so_far[i]}
            candidates.append(candidate | {s.by: value, "rank": own, "kept": own is not None and own <= (s.keep_top or 1)})
        saved = (len(indices) - len(finished)) * (drawn.trace.num_steps - (s.screen_steps or 0))
        calls = len(indices) * drawn.trace.num_steps - saved
        kept = Drawn(drawn.pixels[keep], drawn.trace.take(keep))
        return Selected([finished[i] for i in keep], [ranks[i] for i in keep], kept, candidates, calls, saved)

    def _screen(self, block: Block, prompts: Sequence[Prompt]) -> tuple[Drawn, list[int], list[float]]:
        """All candidates for the first steps, the first of them for the others: what was drawn, their positions, and the
        energy so far of all."""
        s, steps = self.settings, self.settings.screen_steps
        begun = [self._part(slice(0, steps), batch, _of(prompts, batch, block), decode=False) for batch in block.batches]
        early, latents = KPETrace.cat([drawn.trace for drawn, _ in begun]), torch.cat([left for _, left in begun])
        energy = early.model_energy if s.by.startswith("model") else early.path_energy
        so_far = energy.total.tolist()
        _check_finite(range(block.start, block.stop), so_far)
        places = _ranks(range(block.start, block.stop), so_far, s.images_per_prompt, s.lowest)
        alive = [i for i, place in enumerate(places) if place <= s.survivors]
        finished = []
        for at in range(0, len(alive), s.batch_size):
            some = alive[at : at + s.batch_size]
            own = [prompts[i] for i in some]
            finished.append(self._part(slice(steps, None), [block.start + i for i in some], own, latents[some])[0])
        late = _cat(finished)
        return Drawn(late.pixels, _joined(early.take(alive), late.trace)), alive, so_far

    def _part(
        self,
        part: slice,
        indices: Sequence[int],
        prompts: Sequence[Prompt],
        latents: torch.Tensor | None = None,
        decode: bool = True,
    ) -> tuple[Drawn, torch.Tensor]:
        scheduler = self.scheduler
        assert scheduler is not None
        scheduler.part, scheduler.begins_at = part, latents
        changes: dict[str, Any] = {} if latents is None else {"latents": latents}
        drawn = self.model.draw(indices, prompts, decode, **changes)
        assert scheduler.latents is not None
        return drawn, scheduler.latents


def _check_finite(indices: Sequence[int], energies: Sequence[float]) -> None:
    bad = [index for index, energy in zip(indices, energies, strict=True) if not math.isfinite(energy)]
    if bad:
        raise NotFinite(f"the velocity was not finite for sample {', '.join(map(str, bad[:8]))}")


def _ranks(indices: Sequence[int], values: Sequence[float], per_prompt: int, lowest: bool) -> list[int]:
    """Place of every sample, from 1, among those of its prompt; of equals the first comes first."""
    order = sorted(range(len(indices)), key=lambda i: values[i] if lowest else -values[i])
    seen: dict[int, int] = {}
    ranks = [0] * len(indices)
    for i in order:
        prompt = indices[i] // per_prompt
        ranks[i] = seen[prompt] = seen.get(prompt, 0) + 1
    return ranks


def _of(prompts: Sequence[Prompt], batch: range, block: Block) -> Sequence[Prompt]:
    return prompts[batch.start - block.start : batch.stop - block.start]


def _cat(drawn: list[Drawn]) -> Drawn:
    return Drawn(np.concatenate([d.pixels for d in drawn]), KPETrace.cat([d.trace for d in drawn]))


def _joined(early: KPETrace, late: KPETrace) -> KPETrace:
    """The record of a path that was walked in two parts; the net displacement is not known of their lengths."""
    gains = torch.cat([early.gains, late.gains], -1)
    power, sigmas = torch.cat([early.power, late.power], 1), torch.cat([early.sigmas, late.sigmas[1:]])
    settings = late.settings | {"scheduler": KTSFlowMatchScheduler.__name__}
    t = torch.cat([early.t, late.t[1:]])
    return dataclasses.replace(late, power=power, sigmas=sigmas, t=t, gains=gains, settings=settings, displacement=None)
