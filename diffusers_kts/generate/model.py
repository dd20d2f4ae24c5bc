"""The model of a batch job: found, fingerprinted, loaded with its sampler, tried, and called for given samples."""

import difflib
import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..errors import brief
from ..kpe.trace import KPETrace
from ..models import NAMES, REMEDY, check_model_name, embedded_model
from ..pipelines.loading import load_pipeline
from ..pipelines.pipeline_kpe_monitor import KPEMonitorPipeline, plain_class
from ..sampling.prompts import Prompt
from ..schedulers.replacement import fitting_scheduler
from ..seeding import sample_generators, sample_seed
from .settings import GenerateSettings

OPTIONS = {  # setting -> argument of a pipeline
    "steps": "num_inference_steps", "guidance_scale": "guidance_scale", "height": "height", "width": "width",
    "num_frames": "num_frames", "negative_prompt": "negative_prompt",
}  # fmt: skip
OURS = {"prompt", "class_labels", "generator", "latents", "output_type", "return_dict", "num_images_per_prompt"}
TRIAL_STEPS = 2  # one step leaves a schedule with a terminal shift (LTX) undefined


def find_model(name: str) -> Path:
    """The folder of a pipeline: embedded, local, or of the Hub, whose files are downloaded unless they are cached.

    Raises:
        ValueError: there is none.
    """
    check_model_name(name)
    if name in NAMES:
        return embedded_model(name)
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(DiffusionPipeline.download(name))
    except Exception as error:  # whatever the network or the Hub make it raise
        raise ValueError(f"model {name!r} is no folder and cannot be downloaded ({brief(error)}); {REMEDY}.") from error


def num_classes(folder: Path) -> int | None:
    """Number of classes of a class-conditional pipeline of this package; None for one that takes prompts."""
    try:
        if json.loads((folder / "model_index.json").read_text())["_class_name"] != "ClassConditionalFlowPipeline":
            return None
        return int(json.loads((folder / "transformer" / "config.json").read_text())["num_embeds_ada_norm"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model {str(folder)!r} is no pipeline folder ({brief(error)}).") from error


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of ``model_index.json`` and of every file of the components."""
    index = json.loads((folder / "model_index.json").read_text())
    components = [name for name, value in index.items() if not name.startswith("_") and isinstance(value, list)]
    files = [folder / "model_index.json", *(path for name in components for path in (folder / name).rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {_file_hash(path)}\n".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:  # the Hub's cache names large files by their SHA-256
        return blob.name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


@dataclass
class Drawn:
    """Pixels of a batch, (B, H, W, C) or (B, F, H, W, C), float in [0, 1], and its energies."""

    pixels: np.ndarray
    trace: KPETrace


class Model:
    """A monitored pipeline with the sampler and the arguments of the settings.

    Raises:
        ValueError: it cannot be loaded, is not flow matching, or does not take the settings.
    """

    def __init__(self, folder: Path, settings: GenerateSettings, device: torch.device) -> None:
        self.settings = settings
        try:
            pipe = load_pipeline(folder, dtype=getattr(torch, settings.dtype))
        except Exception as error:  # whatever a damaged folder makes diffusers, safetensors or torch raise
            raise ValueError(f"model {settings.model!r} cannot be loaded ({brief(error)}).") from error
        self.pipe: Any = KPEMonitorPipeline.from_pipe(pipe)
        self.own_scheduler = pipe.scheduler
        if settings.shaping is not None:
            shaped, reason = fitting_scheduler(self.own_scheduler)
            if shaped is None:
                raise ValueError(f"model {settings.model!r} cannot be shaped ({reason}); leave preset and shaping out.")
            self.pipe.scheduler = shaped.from_config(self.own_scheduler.config, **settings.shaping)
        self.name = plain_class(type(self.pipe)).__name__
        self.parameters = inspect.signature(type(self.pipe).__call__).parameters
        if not {"class_labels", "prompt"} & set(self.parameters) or "generator" not in self.parameters:
            raise ValueError(f"{self.name} takes no prompt and generator, so there is nothing to generate from here.")
        self.subject = "class_labels" if "class_labels" in self.parameters else "prompt"
        self.arguments = self._arguments()
        self._place(device)
        self.pipe.set_progress_bar_config(disable=True)

    def _arguments(self) -> dict[str, Any]:
        s = self.settings
        arguments = {OPTIONS[name]: value for name in OPTIONS if (value := getattr(s, name)) is not None}
        for name in arguments:
            if name not in self.parameters:
                raise ValueError(f"{self.name} takes no {name}; leave that option out.")
        for name in s.pipeline_args:
            if name in OURS or name in OPTIONS.values():
                raise ValueError(f"pipeline_args sets {name!r}, which has an option of its own or is set by the job.")
            if name not in self.parameters:
                close = difflib.get_close_matches(name, self.parameters, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(list(self.parameters)[1:])}."
                raise ValueError(f"{self.name} takes no argument {name!r}; {hint}")
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

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError for a class that the model does not have, with the number of the prompt."""
        if self.subject != "class_labels":
            return
        for number, prompt in enumerate(prompts, 1):
            try:
                self.pipe.get_label_ids(prompt.text)
            except ValueError as error:
                raise ValueError(f"prompt {number}: {error}") from error

    def draw(self, indices: Sequence[int], prompts: Sequence[Prompt], decode: bool = True, **changes: Any) -> Drawn:
        """Samples of the given indices, in one pipeline call; ``prompts`` are those of the samples. Without ``decode`` there
        are no pixels, only energies."""
        arguments = self.arguments | changes
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(indices)
        torch.manual_seed(sample_seed(self.settings.seed, indices[0]))  # for schedulers that draw noise of their own
        output = self.pipe(
            **{self.subject: [prompt.text for prompt in prompts]},
            generator=sample_generators(self.settings.seed, indices),
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
            raise ValueError(f"{self.name} does not run with these settings: {brief(error)}") from error


def _pixels(output: Any) -> np.ndarray:
    for name in ("images", "frames", "videos"):
        if getattr(output, name, None) is not None:
            pixels = np.asarray(getattr(output, name), np.float32)
            if pixels.ndim in (4, 5):
                return pixels
    raise ValueError(f"the pipeline returned a {type(output).__name__} without images or frames; nothing to write.")
