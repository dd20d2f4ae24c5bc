"""The samplers of an audit: plain, KTS, touchdown and the controls of KTS, from the same noises, by any flow pipeline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..images.training_images import resized
from ..kpe.trace import KPETrace
from ..memorization.controls import finished, spread_evenly, with_equal_noise
from ..sampling.comparison import Compared
from ..sampling.prompts import Prompt, in_turn
from ..sampling.sampler import Sampler, after_each_step
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from ..seeding import sample_generators
from ..shaping import Shaping

OFF = Shaping(alpha_0=0.0, beta_0=0.0)
DECODING_STEPS = 2  # a single step leaves a schedule with a terminal shift (LTX) undefined
SAMPLERS = {
    "euler": "plain Euler",
    "kts": "KTS",
    "touchdown": "touchdown",
    "even": "control: spread evenly",
    "noise": "control: equal noise",
    "finished": "control: KTS finished",
}
CONTROLS = ("even", "noise", "finished")
DRAWN = ("euler", "kts", "touchdown", "even")  # those that call the network at every step


class ObservedScheduler(KTSFlowMatchScheduler):
    """`KTSFlowMatchScheduler` that keeps the network's last output."""

    output: torch.Tensor

    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        self.output = model_output
        return super().step(model_output, timestep, sample, *args, **kwargs)


@dataclass
class Batch:
    """What one sampler drew: images (b, C, H, W) in [0, 1], and, except of samples made from others, the energies."""

    images: torch.Tensor
    trace: KPETrace | None = None


@dataclass
class Run:
    """What a run leaves: images, energies, its last latents and the network's last output."""

    images: torch.Tensor
    trace: KPETrace
    latents: torch.Tensor
    velocity: torch.Tensor


class PlainSampler:
    """Draws batches of a pipeline with the scheduler that it has.

    Args:
        sampler (`Sampler`): of the model.
        prompts (`Sequence[Prompt]`): prompts or classes, which repeat in turn.

    Raises:
        ValueError: the model does not take the prompts.
    """

    def __init__(self, sampler: Sampler, prompts: Sequence[Prompt]) -> None:
        self.sampler, self.prompts = sampler, prompts
        sampler.check_prompts(prompts)
        sampler.pipe.record_turn = True

    def subject(self, index: int) -> str:
        """The prompt, or the name of the class, of a sample."""
        described = self.sampler.described(in_turn(self.prompts, [index])[0])
        return str(described.get("prompt", described.get("class_name")))

    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images, as `Sampler.image_shape`, with 1 or 3 channels."""
        shape = self.sampler.image_shape(self.prompts)
        if shape[0] not in (1, 3):
            raise ValueError(f"{self.sampler.name} draws images of {shape[0]} channels; an audit takes grey or RGB.")
        return shape

    def plain(self, block: range, size: tuple[int, int]) -> Batch:
        """A batch of the samples of ``block``, images of the (height, width)."""
        drawn = self.sampler.draw(block, in_turn(self.prompts, block))
        return Batch(resized(drawn.images.clamp(0, 1), size), drawn.trace)


class AuditSampler(PlainSampler):
    """Draws batches of every sampler of an audit.

    Raises:
        ValueError: as `PlainSampler`, or the model is not flow matching, or does not take what an audit needs.
    """

    def __init__(self, sampler: Sampler, prompts: Sequence[Prompt]) -> None:
        sampler.check_comparable()
        super().__init__(sampler, prompts)

    def draw(
        self, block: range, samplers: Mapping[str, Compared], size: tuple[int, int], advance: Callable[[str, int], None]
    ) -> dict[str, Batch]:
        """A batch of every sampler for the samples of ``block``, from the same noises.

        Args:
            block (`range`): numbers of the samples.
            samplers (`Mapping[str, Compared]`): "euler", "kts" and "touchdown".
            size (`tuple[int, int]`): height and width of the images.
            advance (`Callable`): called as it goes, with a sampler and a number of steps.
        """
        generators = sample_generators(self.sampler.settings.seed, block)
        runs: dict[str, Run] = {}
        num_steps = 0
        for name, (_, shaping) in samplers.items():
            # the plain run leaves each sample's generator behind its starting noise: what comes next is new
            own = generators if name == "euler" else None
            runs[name] = self.run(block, shaping, partial(advance, name, 1), own)
            num_steps = num_steps or runs[name].trace.num_steps
            advance(name, num_steps - runs[name].trace.num_steps)  # a touchdown takes fewer
        kts = runs["kts"]
        gains, sigmas = kts.trace.gains, kts.trace.sigmas
        even = Shaping(**(spread_evenly(gains, sigmas) | {"tau_split": kts.trace.tau_split}))
        runs["even"] = self.run(block, even, partial(advance, "even", 1))
        ends = {
            "noise": with_equal_noise(runs["euler"].latents, kts.latents, generators),
            "finished": finished(kts.latents, kts.velocity, gains, sigmas),
        }
        batches = {name: Batch(resized(run.images, size), run.trace) for name, run in runs.items()}
        return batches | {name: Batch(resized(self.decode(block, latents), size)) for name, latents in ends.items()}

    def run(
        self,
        block: range,
        shaping: Shaping,
        advance: Callable[[], None] = lambda: None,
        generators: list[torch.Generator] | None = None,
    ) -> Run:
        """One sampler's run, with what the controls need of it."""
        latents: list[torch.Tensor] = []

        def keep(tensors: dict[str, Any]) -> None:
            latents[:] = [tensors["latents"]]
            advance()

        scheduler = self.sampler.shape(ObservedScheduler, shaping)
        drawn = self.sampler.draw(
            block, in_turn(self.prompts, block), generators=generators, callback_on_step_end=after_each_step(keep)
        )
        return Run(drawn.images.clamp(0, 1), drawn.trace, latents[0], scheduler.output)

    def decode(self, block: range, latents: torch.Tensor) -> torch.Tensor:
        """Images of given latents, by the pipeline itself: a short call whose every result is replaced."""
        self.sampler.shape(KTSFlowMatchScheduler, OFF)
        drawn = self.sampler.draw(
            block,
            in_turn(self.prompts, block),
            num_inference_steps=DECODING_STEPS,
            callback_on_step_end=after_each_step(lambda tensors: {"latents": latents}),
        )
        return drawn.images.clamp(0, 1)
