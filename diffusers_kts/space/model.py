"""The model of the demo, loaded once, and the drawing of one visitor's images with a scheduler of their own."""

from . import gpu  # noqa: I001 (before torch)

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..kpe.trace import KPETrace
from ..memorization.fraction import Memorization, measure_memorization
from ..memorization.neighbors import distinct_images
from ..models import PROMPTS, SHOWN_FIRST
from ..pipelines.pipeline_flow_class_conditional import ClassConditionalFlowPipeline
from ..sampling.find import IMAGES, find_model
from ..sampling.prompts import Prompt
from ..sampling.sampler import Sampler, after_each_step
from ..sampling.settings import SamplingSettings
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from ..seeding import sample_generators
from ..images.training_images import load_images
from .limits import ALL, About, Drawing, Shaping


@dataclass(frozen=True, eq=False)
class Drawn:
    """(B, C, H, W) images in [0, 1], their energies, and, where the training images are known, their neighbors."""

    images: torch.Tensor
    trace: KPETrace
    found: Memorization | None


class SpaceModel:
    """A pipeline on its device, ready to draw.

    Args:
        name (`str`): an embedded model, a folder, or the Hub id of a flow model.

    Raises:
        ValueError: there is no such model, or it is not flow matching.
    """

    def __init__(self, name: str = SHOWN_FIRST) -> None:
        self.name = name
        folder, cuda = find_model(name), torch.cuda.is_available()
        settings = SamplingSettings(model=name, dtype="bfloat16" if cuda else "float32")
        self.sampler = Sampler(folder, settings, torch.device("cuda" if cuda else "cpu"))
        self.pipe = pipe = self.sampler.pipe
        self.sampler.check_comparable()
        self.training: torch.Tensor | None = None
        self.by_class = isinstance(pipe, ClassConditionalFlowPipeline)
        if (folder / IMAGES).exists():
            shape = self.sampler.image_shape([Prompt(0 if self.by_class else "a picture")])
            self.training = load_images(folder / IMAGES, shape)
        file = folder / PROMPTS
        self.suggestions = tuple(file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()

    @property
    def about(self) -> About:
        classes: tuple[str, ...] = ()
        scale = self.sampler.argument("guidance_scale")
        if self.by_class:
            classes = (ALL, *(self.pipe.id2label.get(i, str(i)) for i in range(self.pipe.num_classes)))
            scale = scale if self.pipe.config.guidance_trained else None
        negative = "negative_prompt" in self.sampler.parameters
        return About(classes, self.suggestions, scale, negative, self.training is not None)

    @cached_property
    def distinct(self) -> torch.Tensor:
        assert self.training is not None
        return distinct_images(self.training)

    def scheduler(self, shaping: Shaping) -> KTSFlowMatchScheduler:
        """A new one for every request: schedulers hold the state of a run."""
        return KTSFlowMatchScheduler.from_config(self.pipe.scheduler.config, **shaping.settings())

    def times(self, steps: int, shaping: Shaping) -> list[float]:
        """Flow times of the network calls."""
        scheduler = self.scheduler(Shaping(touchdown=shaping.touchdown))
        # with dynamic shifting by size, that of the largest size the model was made for
        mu = scheduler.config.max_shift if scheduler.config.use_dynamic_shifting else None
        scheduler.set_timesteps(steps, mu=mu)
        return [row["t"] for row in scheduler.schedule_table()]

    def draw(self, drawing: Drawing, shaping: Shaping, advance: Callable[[], Any] | None = None) -> Drawn:
        """Draw with a scheduler and a pipeline of this request's own; only the weights are shared.

        Args:
            drawing: what to draw.
            shaping: the settings.
            advance: called after every step; may raise `sessions.Stopped`.

        Raises:
            Refused: unsafe shaping, or a class the model does not know.
        """
        self.about.check(drawing)
        shaping.check()
        images, trace = draw_on_gpu(self.name, drawing, shaping, None if gpu.spaces else advance)
        found = None
        if self.training is not None:
            found = measure_memorization(images, self.training, distinct=self.distinct)
        return Drawn(images, trace, found)

    def _run(self, drawing: Drawing, shaping: Shaping, advance: Callable[[], Any] | None) -> tuple[torch.Tensor, KPETrace]:
        sampler = copy.copy(self.sampler)
        sampler.pipe = copy.copy(self.pipe)
        sampler.pipe.scheduler = self.scheduler(shaping)

        def after_step(tensors: dict[str, Any]) -> None:
            if advance is not None:
                advance()

        subjects: Any = drawing.subjects
        if self.by_class:
            classes = self.about.classes[1:]
            subjects = [i % len(classes) if name == ALL else classes.index(name) for i, name in enumerate(subjects)]
        changes: dict[str, Any] = {"negative_prompt": drawing.negative_prompt} if drawing.negative_prompt else {}
        if drawing.guidance_scale is not None and self.about.guidance_scale is not None:
            changes["guidance_scale"] = drawing.guidance_scale
        drawn = sampler.draw(
            range(drawing.count),
            [Prompt(subject) for subject in subjects],
            generators=sample_generators(drawing.seed, range(drawing.count)),
            num_inference_steps=drawing.steps,
            callback_on_step_end=after_each_step(after_step),
            **changes,
        )
        return drawn.images, drawn.trace


LOADED: dict[str, SpaceModel] = {}


def load(name: str = SHOWN_FIRST) -> SpaceModel:
    """The model, loaded at its first mention."""
    if name not in LOADED:
        LOADED[name] = SpaceModel(name)
    return LOADED[name]


@gpu.on_gpu
def draw_on_gpu(name: str, drawing: Drawing, shaping: Shaping, advance: Any) -> tuple[torch.Tensor, KPETrace]:
    # on ZeroGPU this runs in a fork: small arguments go in, and the record must come out, since that scheduler ends there
    return LOADED[name]._run(drawing, shaping, advance)
