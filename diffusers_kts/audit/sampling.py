"""The samplers of an audit: plain, KTS, touchdown and the controls of KTS, from the same noises, by any flow pipeline."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import brief
from ..images.training_images import resized
from ..kpe.stock_schedulers import is_flow_matching
from ..kpe.trace import KPETrace
from ..memorization.controls import finished, spread_evenly, with_equal_noise
from ..pipelines.loading import load_pipeline
from ..pipelines.pipeline_flow_class_conditional import ClassConditionalFlowPipeline
from ..presets import PRESETS
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from ..seeding import sample_generators

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
class _Drawn:
    images: torch.Tensor
    latents: torch.Tensor
    scheduler: ObservedScheduler
    trace: KPETrace


class AuditModel:
    """A pipeline as an audit uses it: drawn from with our scheduler, one prompt or class per sample.

    Args:
        folder (`Path`): a saved pipeline with a flow scheduler.
        subjects (`Sequence[str]`): prompts, which go round in order; none for class labels.
        arguments (`dict`): further arguments of the pipeline's call; None leaves its own default.

    Raises:
        ValueError: it cannot be loaded, is not flow matching, or does not take what an audit needs.
    """

    def __init__(
        self, folder: Path, subjects: Sequence[str], device: torch.device, dtype: torch.dtype, arguments: dict[str, Any]
    ) -> None:
        try:
            pipe: Any = load_pipeline(folder, dtype=dtype)
        except Exception as error:  # whatever a damaged folder makes diffusers, safetensors or torch raise
            raise ValueError(f"model {str(folder)!r} cannot be loaded ({brief(error)}); give a pipeline folder.") from error
        self.name, self.pipe = type(pipe).__name__, pipe.to(device)
        if not is_flow_matching(pipe.scheduler):
            raise ValueError(f"{self.name} has a {type(pipe.scheduler).__name__}, which is not flow matching.")
        self.stock_scheduler, self.config = type(pipe.scheduler).__name__, pipe.scheduler.config
        self.pipe.set_progress_bar_config(disable=True)
        parameters = inspect.signature(type(pipe).__call__).parameters
        self.classes = isinstance(pipe, ClassConditionalFlowPipeline)
        needed = {"class_labels" if self.classes else "prompt", "generator", "callback_on_step_end", "num_inference_steps"}
        if lacking := sorted(needed - set(parameters)):
            raise ValueError(f"{self.name} takes no {lacking[0]}, which an audit needs; it cannot be audited.")
        if self.classes and subjects:
            raise ValueError(f"{self.name} draws classes, not prompts; leave --prompts out.")
        if not self.classes and not subjects:
            raise ValueError(f"{self.name} needs prompts; give a text file, one prompt a line, with --prompts.")
        self.subjects: Sequence[Any] = range(pipe.num_classes) if self.classes else subjects
        self.arguments = {name: value for name, value in arguments.items() if value is not None}
        for name in self.arguments:
            if name not in parameters:
                raise ValueError(f"{self.name} takes no {name}; leave that option out.")

    def subject(self, index: int) -> str:
        """The prompt, or the name of the class, of a sample."""
        subject = self.subjects[index % len(self.subjects)]
        return str(self.pipe.id2label.get(subject, subject) if self.classes else subject)

    def trial(self) -> tuple[int, int, int]:
        """(C, H, W) of the images, from a call of few steps, so that what the pipeline refuses is known before any work.

        Raises:
            ValueError: with the pipeline's own words.
        """
        try:
            drawn = self._draw(range(1), sample_generators(0, range(1)), 2, PRESETS["off"])
        except Exception as error:  # bad arguments, impossible sizes, no memory
            raise ValueError(f"{self.name} does not run with these settings: {brief(error)}") from error
        return tuple(drawn.images.shape[1:])  # type: ignore[return-value]

    def draw(
        self,
        block: range,
        seed: int,
        num_steps: int,
        shapings: dict[str, dict[str, Any]],
        size: tuple[int, int],
        advance: Callable[[str, int], None],
    ) -> dict[str, Batch]:
        """A batch of every sampler for the samples of ``block``, from the same noises.

        ``shapings`` are those of "euler", "kts" and "touchdown"; ``advance(sampler, steps)`` is called as it goes.
        """
        drawn: dict[str, _Drawn] = {}
        batches: dict[str, Batch] = {}

        def sample(name: str, shaping: dict[str, Any]) -> list[torch.Generator]:
            generators = sample_generators(seed, block)
            drawn[name] = self._draw(block, generators, num_steps, shaping, lambda: advance(name, 1))
            run = drawn[name]
            batches[name] = Batch(resized(run.images, size), run.trace)
            advance(name, num_steps - run.trace.num_steps)  # a touchdown takes fewer
            return generators

        # the plain run leaves each sample's generator behind its starting noise: what comes next is new
        generators = sample("euler", shapings["euler"])
        sample("kts", shapings["kts"])
        sample("touchdown", shapings["touchdown"])
        kts = drawn["kts"]
        gains, sigmas = kts.trace.gains, kts.trace.sigmas
        sample("even", spread_evenly(gains, sigmas) | {"tau_split": kts.trace.tau_split})
        ends = {
            "noise": with_equal_noise(drawn["euler"].latents, kts.latents, generators),
            "finished": finished(kts.latents, kts.scheduler.output, gains, sigmas),
        }
        for name, latents in ends.items():
            batches[name] = Batch(resized(self._decode(block, latents), size))
        return batches

    def _draw(
        self,
        block: range,
        generators: list[torch.Generator],
        num_steps: int,
        shaping: dict[str, Any],
        advance: Callable[[], None] = lambda: None,
    ) -> _Drawn:
        latents: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
            latents[:] = [tensors["latents"]]
            advance()
            return tensors

        scheduler = self.pipe.scheduler = ObservedScheduler.from_config(self.config, **shaping)
        scheduler.record_turn = True
        images = self._call(block, generators, num_steps, keep)
        trace = scheduler.kpe
        if trace is None or len(trace) != len(block):
            raise ValueError(f"{self.name} made {0 if trace is None else len(trace)} paths for {len(block)} samples.")
        return _Drawn(images, latents[0], scheduler, trace)

    def _decode(self, block: range, latents: torch.Tensor) -> torch.Tensor:
        """Images of given latents, by the pipeline itself: a short call whose every result is replaced."""

        def replace(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
            return {"latents": latents}

        self.pipe.scheduler = KTSFlowMatchScheduler.from_config(self.config, **PRESETS["off"])
        return self._call(block, sample_generators(0, block), DECODING_STEPS, replace)

    def _call(
        self, block: range, generators: list[torch.Generator], num_steps: int, callback: Callable[..., dict]
    ) -> torch.Tensor:
        chosen = [self.subjects[i % len(self.subjects)] for i in block]
        output = self.pipe(
            **{"class_labels" if self.classes else "prompt": chosen},
            num_inference_steps=num_steps,
            generator=generators,
            output_type="pt",
            callback_on_step_end=callback,
            **self.arguments,
        )
        images = getattr(output, "images", None)
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"{self.name} returns no images (B, 1 or 3, H, W) to compare with training images.")
        return images.float().cpu().clamp(0, 1)
