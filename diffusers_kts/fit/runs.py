"""Runs of a pipeline with a given scheduler, watched step by step."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..kpe.recording import namesake
from ..sampling.prompts import Prompt, in_turn
from ..sampling.sampler import Drawn, Sampler

Watch = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], None]


def watched(scheduler: Any, watch: Watch) -> Any:
    """The scheduler itself, each step of which also calls ``watch(scheduler, sample, velocity, next sample)``."""
    cls = type(scheduler)

    def step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.step(self, model_output, timestep, sample, *args, **kwargs)
        watch(self, sample, model_output, result[0])
        return result

    scheduler.__class__ = namesake(cls, {"step": step})
    return scheduler


class Runs:
    """Runs of a sampler from the noises of given numbers. Every run has a copy of the pipeline, so that several can be under
    way at once.

    Args:
        sampler (`Sampler`): of the model.
        prompts (`Sequence[Prompt]`): those of the trajectories that are fitted to.
        others (`Sequence[Prompt]`): those of the trajectories that are held out.
        fitted (`int`): how many trajectories are fitted to; later numbers are held out.
        advance (`Callable`): called after every network call.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[Prompt],
        others: Sequence[Prompt],
        fitted: int,
        advance: Callable[[], Any] = lambda: None,
    ) -> None:
        self.sampler, self.prompts, self.others, self.fitted, self.advance = sampler, prompts, others, fitted, advance

    def prompts_of(self, indices: Sequence[int]) -> list[Prompt]:
        return [in_turn(self.prompts if i < self.fitted else self.others, [i])[0] for i in indices]

    def run(
        self, indices: Sequence[int], scheduler: Any, steps: int, watch: Watch = lambda *_: None, decode: bool = False
    ) -> tuple[torch.Tensor, Drawn]:
        """The states at the end, (B, ...) fp32 on the CPU, and what was drawn.

        Raises:
            ValueError: the pipeline does not make one whole run.
        """
        made, end, sampler = 0, torch.empty(0), copy.copy(self.sampler)

        def look(scheduler: Any, sample: torch.Tensor, v: torch.Tensor, after: torch.Tensor) -> None:
            nonlocal made, end
            watch(scheduler, sample, v, after)
            made, end = made + 1, after
            self.advance()

        sampler.pipe = copy.copy(self.sampler.pipe)
        sampler.pipe.set_progress_bar_config(disable=True)
        sampler.pipe.scheduler = watched(scheduler, look)
        drawn = sampler.draw(indices, self.prompts_of(indices), decode=decode, num_inference_steps=steps)
        planned = len(scheduler.timesteps)
        if made != planned or len(end) != len(indices):
            raise ValueError(
                f"{sampler.name} made {made} steps with {len(end)} samples, not {planned} with {len(indices)}: its sampling "
                "cannot be fitted."
            )
        return end.detach().float().cpu(), drawn
