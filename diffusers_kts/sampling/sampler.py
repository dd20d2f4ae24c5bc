"""A pipeline that draws the samples of given numbers: loaded, checked, tried, and called batch by batch."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import brief
from ..kpe.stock_schedulers import is_flow_matching
from ..kpe.trace import KPETrace
from ..models import GUIDANCE
from ..pipelines.pipeline_kpe_monitor import KPEMonitorPipeline, plain_class
from ..schedulers.replacement import fitting_scheduler
from ..seeding import sample_generators, sample_seed
from ..shaping import Shaping
from .find import load_model
from .prompts import Prompt
from .settings import SamplingSettings

ARGUMENTS = ("num_inference_steps", "guidance_scale", "height", "width", "num_frames", "negative_prompt")
SET_HERE = {"prompt", "class_labels", "generator", "latents", "output_type", "return_dict", "num_images_per_prompt"}
TRIAL_STEPS = 2  # one step leaves a schedule with a terminal shift (LTX) undefined


@dataclass
class Drawn:
    """Pixels of a batch, (B, H, W, C) or (B, F, H, W, C), float in [0, 1], and its energies."""

    pixels: np.ndarray
    trace: KPETrace

    @property
    def images(self) -> torch.Tensor:
        """(B, C, H, W), of videos (B, F, C, H, W)."""
        return torch.from_numpy(self.pixels).movedim(-1, -3)


class Sampler:
    """A monitored pipeline with the arguments of its calls.

    Args:
        source (`Path` or a pipeline): the folder of the pipeline, or the pipeline itself.
        settings (`SamplingSettings`): what it is called with.
        device (`torch.device`, *optional*): where it runs; None leaves it where it is.
        shaping (`Shaping`, *optional*): of the KTS scheduler that fits; without them the model keeps its own.

    Raises:
        ValueError: it cannot be loaded, is not flow matching, or does not take the settings.
    """

    def __init__(
        self, source: Any, settings: SamplingSettings, device: torch.device | None, shaping: Shaping | None = None
    ) -> None:
        self.settings = settings
        pipe = source
        if isinstance(source, Path):
            pipe = load_model(source, settings.model, dtype=getattr(torch, settings.dtype))
        self.pipe: Any = KPEMonitorPipeline.from_pipe(pipe)
        self.own_scheduler = pipe.scheduler
        if shaping is not None:
            shaped, reason = fitting_scheduler(self.own_scheduler)
            if shaped is None:
                raise ValueError(f"model {settings.model!r} cannot be shaped ({reason}); give a model with another scheduler.")
            self.shape(shaped, shaping)
        self.name = plain_class(type(self.pipe)).__name__
        self.parameters = inspect.signature(type(self.pipe).__call__).parameters
        if not {"class_labels", "prompt"} & set(self.parameters) or "generator" not in self.parameters:
            raise ValueError(f"{self.name} takes no prompt and generator, so there is nothing to generate from here.")
        self.subject = "class_labels" if "class_labels" in self.parameters else "prompt"
        self.arguments = self._arguments()
        if device is not None:
            self._place(device)

    def shape(self, scheduler: Any, shaping: Shaping) -> Any:
        """Put a scheduler of this class, with these settings, in place; returned too."""
        self.pipe.scheduler = scheduler.from_config(self.own_scheduler.config, **shaping.to_dict())
        return self.pipe.scheduler

    def _arguments(self) -> dict[str, Any]:
        s = self.settings
        arguments = {name: value for name in ARGUMENTS if (value := getattr(s, name)) is not None}
        if s.model in GUIDANCE and "guidance_scale" not in s.pipeline_args:
            arguments.setdefault("guidance_scale", GUIDANCE[s.model])
        for name in arguments:
            if name not in self.parameters:
                raise ValueError(f"{self.name} takes no {name}; leave that option out.")
        for name in s.pipeline_args:
            if name in SET_HERE or name in ARGUMENTS:
                raise ValueError(f"pipeline_args sets {name!r}, which has its own option or is set by the job.")
            if name not in self.parameters:
                close = difflib.get_close_matches(name, self.parameters, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(list(self.parameters)[1:])}."
                raise ValueError(f"pipeline_args sets {name!r:.60}, which {self.name} does not take; {hint}")
        return arguments | dict(s.pipeline_args)

    def _place(self, device: torch.device) -> None:
        offload = self.settings.offload
        if offload != "none" and device.type == "cpu":
            raise ValueError(f"offload is {offload!r}, but the model runs on the CPU; leave --offload out.")
        if offload == "model":
            self.pipe.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            self.pipe.enable_sequential_cpu_offload(device=device)
        else:
            self.pipe.to(device)
        if self.settings.compile:
            for name in ("transformer", "transformer_2"):
                if getattr(self.pipe, name, None) is not None:
                    getattr(self.pipe, name).compile()

    def argument(self, name: str) -> Any:
        """What the pipeline is given for ``name``, or its own default."""
        parameter = self.parameters.get(name)
        default = None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
        return self.arguments.get(name, default)

    @property
    def id2label(self) -> dict[int, str] | None:
        return self.pipe.id2label if self.subject == "class_labels" else None

    def described(self, prompt: Prompt) -> dict[str, Any]:
        """Columns that say what a sample is to be: its prompt, or the number and the name of its class."""
        if self.id2label is None:
            return {"prompt": prompt.text}
        (label,) = self.pipe.get_label_ids(prompt.text)
        return {"label": int(label), "class_name": self.id2label.get(int(label), str(label))}

    def check_comparable(self) -> None:
        """Raises ValueError for a pipeline that plain Euler, KTS and touchdown steps cannot all draw from."""
        if not is_flow_matching(self.own_scheduler):
            raise ValueError(f"{self.name} has a {type(self.own_scheduler).__name__}, which is not flow matching.")
        for name in ("callback_on_step_end", "num_inference_steps"):
            if name not in self.parameters:
                raise ValueError(f"{self.name} takes no {name}, which a comparison of samplers needs.")

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError for a class or a column that the model does not take, with the number of the prompt."""
        source = getattr(self.settings, "prompts", None)  # a file, where there is one
        for number, prompt in enumerate(prompts, 1):
            where = f"{source}, prompt {number}" if source else f"prompt {number}"
            if untaken := [name for name in prompt.arguments if name not in self.parameters]:
                raise ValueError(f"{where} sets {untaken[0]}, which {self.name} does not take; remove that column.")
            if unused := [name for name in prompt.columns if name in self.parameters]:
                raise ValueError(
                    f"{where} has a column {unused[0]}, an argument of {self.name} that is not read from rows; "
                    "give it with --pipeline-args, or give the column another name to carry it along."
                )
            if self.subject == "class_labels":
                try:
                    self.pipe.get_label_ids(prompt.text)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error

    def draw(
        self,
        indices: Sequence[int],
        prompts: Sequence[Prompt],
        decode: bool = True,
        generators: list[torch.Generator] | None = None,
        **changes: Any,
    ) -> Drawn:
        """The samples of the given numbers, in one pipeline call.

        Args:
            indices (`Sequence[int]`): numbers of the samples.
            prompts (`Sequence[Prompt]`): of the samples.
            decode (`bool`): without it there are no pixels, only energies.
            generators (`list[torch.Generator]`, *optional*): of the samples' noise, in place of those of the seed.
            changes: of the pipeline's arguments.

        Raises:
            ValueError: the pipeline does not give one output and one path for each sample.
        """
        torch.manual_seed(sample_seed(self.settings.seed, indices[0]))  # for schedulers that draw noise themselves
        arguments = self.arguments | changes
        negative = [prompt.arguments.get("negative_prompt", arguments.get("negative_prompt")) for prompt in prompts]
        if any(text is not None for text in negative):
            arguments["negative_prompt"] = [text or "" for text in negative]
        output = self.pipe(
            **{self.subject: [prompt.text for prompt in prompts]},
            generator=generators or sample_generators(self.settings.seed, indices),
            output_type="np" if decode else "latent",
            **arguments,
        )
        trace, pixels = self.pipe.kpe, _pixels(output) if decode else np.empty((len(indices), 0), np.float32)
        if trace is None or len(trace) != len(indices) or len(pixels) != len(indices):
            raise ValueError(
                f"{self.name} gave {len(pixels)} outputs and {0 if trace is None else len(trace)} energies for "
                f"{len(indices)} samples; it cannot be used in batches here, try --batch-size 1."
            )
        return Drawn(pixels, trace)

    def image_shape(self, prompts: Sequence[Prompt]) -> tuple[int, int, int]:
        """(C, H, W) of the images, from a trial with the first prompt.

        Raises:
            ValueError: as `trial`, or it draws videos, which cannot be compared with training images.
        """
        _, *shape = self.trial(range(1), prompts[:1]).images.shape
        if len(shape) != 3:
            raise ValueError(f"{self.name} draws videos, which are not compared with training images; give another model.")
        return shape[0], shape[1], shape[2]

    def trial(self, indices: Sequence[int], prompts: Sequence[Prompt]) -> Drawn:
        """A call of few steps, so that what the pipeline refuses is known before anything is written.

        Raises:
            ValueError: with the pipeline's own words.
        """
        steps = self.argument("num_inference_steps")
        changes = {} if steps is None else {"num_inference_steps": min(steps, TRIAL_STEPS)}
        try:
            return self.draw(indices, prompts, **changes)
        except Exception as error:  # bad arguments, impossible sizes, no memory
            raise ValueError(
                f"{self.name} of {self.settings.model} does not run with these settings: {brief(error)}"
            ) from error


def after_each_step(act: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Callable[..., dict[str, Any]]:
    """A ``callback_on_step_end`` that calls ``act`` with the tensors of a step; what it returns takes their place."""
    return lambda pipe, step, timestep, tensors: act(tensors) or tensors


def _pixels(output: Any) -> np.ndarray:
    for name in ("images", "frames", "videos"):
        if getattr(output, name, None) is not None:
            pixels = np.asarray(getattr(output, name), np.float32)
            if pixels.ndim in (4, 5):
                return pixels
    raise ValueError(f"the pipeline returned a {type(output).__name__} without images or frames; nothing to write.")
