"""What KTS and KPE will do in a given pipeline, and what to paste to have it: the work of ``kts doctor``."""

import inspect
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModularPipeline

from .kpe.recording import schedulers_of
from .pipelines.pipeline_kpe_monitor import KPEMonitorPipeline
from .presets import PRESETS
from .schedulers.base import KTSSchedulerMixin, ScheduleTable
from .schedulers.replacement import fitting_scheduler
from .schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler

FEW_STEPS = 8
TRIAL_PARAMETERS = 50_000_000
TRIAL_STEPS = 3

# what a pipeline does with its scheduler that no configuration shows; read from its source
AUDIO = "the audio latents step with a copy of the scheduler, shaped alike and recorded as a separate stream"
COSMOS = "its schedule counts sigma / alpha, 80 to 0.002: gains and energies are in flow coordinates"
REMARKS = {
    "ChronoEditPipeline": "enable_temporal_reasoning needs a multistep scheduler (it resets its history)",
    "Cosmos2TextToImage": COSMOS,
    "Cosmos2VideoToWorld": COSMOS,
    "DiTPipeline": "under guidance it steps two copies of its latents: the record has two entries a sample",
    "LTXConditionPipeline": "every token has its own time and gain; tokens of the condition do not move",
    "LTXI2VLongMultiPromptPipeline": "it leaves out the last step, with every scheduler: set no touchdown, which is that step",
    "LTX2": AUDIO,
    "Kandinsky6TI2VA": AUDIO,
    "LTX2DFRTemporalRefinePipeline": "it refuses every scheduler but LTXEulerAncestralRFScheduler, which re-noises",
    "SanaWM": "every token has its own time and gain",
    "SkyReelsV2DiffusionForcing": "every latent frame steps with a copy of the scheduler; Euler's fails there",
}


@dataclass(frozen=True)
class SchedulerDiagnosis:
    """One scheduler of the pipeline.

    Attributes:
        name (`str`): attribute of the pipeline, dotted inside sub-pipelines. found (`str`): its class.
        use (`str`, *optional*): the KTS class that fits, None if there is none. code (`str`): what to paste for it.
        table (`ScheduleTable`): gains per evaluation on the schedule assumed, which ``schedule`` describes.
        net_displacement (`float`): share of the whole way that the shaped steps move.
        late_start (`tuple`): (first step, net displacement from it) at the pipeline's default strength; None without one.
        notes, warnings (`tuple[str, ...]`): sentences.
    """

    name: str
    found: str
    use: str | None
    code: str = ""
    schedule: str = ""
    table: ScheduleTable = field(default_factory=ScheduleTable)
    net_displacement: float = 1.0
    late_start: tuple[int, float] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def landing_steps(self) -> int:
        return sum(row["phase"] == "landing" for row in self.table)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.found}"]
        if self.use is not None:
            lines += [f"  use: {self.use}", *(f"    {line}" for line in self.code.splitlines())]
        if self.table:
            lines += [f"  schedule: {self.schedule}", *(f"    {line}" for line in repr(self.table).splitlines())]
            lines += [
                f"  {len(self.table)} evaluations, {self.landing_steps} of them landing; net displacement "
                f"{self.net_displacement:.4f} of 1"
            ]
        if self.late_start is not None:
            lines += [f"  at the default strength it begins at step {self.late_start[0]}: {self.late_start[1]:.4f} of its way"]
        lines += [f"  note: {note}." for note in self.notes] + [f"  warning: {warning}." for warning in self.warnings]
        return "\n".join(lines)


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; prints as text.

    Attributes:
        pipeline (`str`): class name. num_inference_steps (`int`): steps assumed.
        schedulers (`tuple[SchedulerDiagnosis, ...]`): every scheduler, those of sub-pipelines too.
        notes (`tuple[str, ...]`): of the pipeline. trial (`str`): what a short run showed, or why there was none.
    """

    pipeline: str
    num_inference_steps: int
    schedulers: tuple[SchedulerDiagnosis, ...]
    notes: tuple[str, ...] = ()
    trial: str = ""

    @property
    def can_shape(self) -> bool:
        """Whether KTS can act on at least one scheduler."""
        return any(scheduler.use is not None for scheduler in self.schedulers)

    def __str__(self) -> str:
        blocks = [f"{self.pipeline}, {self.num_inference_steps} steps", *map(str, self.schedulers)]
        blocks += [f"note: {note}." for note in self.notes]
        if self.trial:
            blocks.append(f"trial: {self.trial}.")
        return "\n".join(blocks)


def diagnose(pipe: Any, num_inference_steps: int | None = None, trial: bool | None = None, **shaping: Any) -> Diagnosis:
    """Inspect a pipeline; nothing of it is changed.

    Examples:
        >>> from diffusers_kts import ClassConditionalFlowPipeline, embedded_model
        >>> pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> diagnose(pipe, 20, trial=False).schedulers[0].use
        'KTSFlowMatchScheduler'

    Args:
        pipe (`DiffusionPipeline` or `ModularPipeline`): any pipeline.
        num_inference_steps (`int`, *optional*): instead of the pipeline's own default.
        trial (`bool`, *optional*): run a few steps, with the scheduler it has and with ours; by default where all
            models together have at most 50 million parameters.
        shaping: settings of the KTS schedulers; by default `PRESETS` ["balanced"].

    Raises:
        TypeError: not a pipeline. ValueError: a shaping setting is out of range.
    """
    if not isinstance(pipe, (DiffusionPipeline, ModularPipeline)):
        raise TypeError(f"diagnose got {type(pipe).__name__}; give a diffusers pipeline.")
    shaping = {**PRESETS["balanced"], **shaping}
    KTSFlowMatchScheduler(**shaping)  # wrong settings are refused before any work
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; give at least 1.")
    steps, notes = num_inference_steps, _remarks(pipe)
    if steps is None:
        default = _parameters(pipe).get("num_inference_steps")
        steps = default.default if default is not None and isinstance(default.default, int) else 50
        if default is None or steps != default.default:
            notes.append(f"it has no default number of steps; {steps} are assumed")
    found = schedulers_of(pipe)
    if not found:
        notes.append("it has no scheduler, so there is no path to measure or to shape")
    schedulers = tuple(_diagnose_scheduler(pipe, name, scheduler, steps, shaping) for name, scheduler in found.items())
    diagnosis = Diagnosis(type(pipe).__name__, steps, schedulers, tuple(notes))
    if trial is None:
        parameters = sum(p.numel() for part in _modules(pipe) for p in part.parameters())
        if not 0 < parameters <= TRIAL_PARAMETERS:
            size = f"its models have {parameters / 1e6:.0f} million parameters" if parameters else "its models are not loaded"
            return replace(diagnosis, trial=f"none, since {size}")
    elif not trial:
        return diagnosis
    return replace(diagnosis, trial=_try(pipe, diagnosis, shaping))


def _parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(type(pipe).__call__).parameters)


def _modules(pipe: Any) -> list[torch.nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _remarks_of(pipeline: str) -> list[str]:
    return [note for name, note in REMARKS.items() if pipeline.startswith(name)]


def _remarks(pipe: Any) -> list[str]:
    notes = _remarks_of(type(pipe).__name__)
    if "callback_on_step_end" not in _parameters(pipe):
        notes.append("it takes no callback_on_step_end: read pipe.kpe or pipe.scheduler.kpe after the call")
    if "mask_image" in _parameters(pipe):
        notes.append("the known region is overwritten after each step: shaping acts on the rest, energies are of the velocity")
    return notes


def _diagnose_scheduler(pipe: Any, name: str, scheduler: Any, steps: int, shaping: dict[str, Any]) -> SchedulerDiagnosis:
    found, notes, alarms = type(scheduler).__name__, [], []
    if isinstance(scheduler, KTSSchedulerMixin):
        ours, cls = type(scheduler).from_config(scheduler.config), type(scheduler)
        code = f"# pipe.{name} shapes already; its settings are in pipe.{name}.config"
    else:
        cls, reason = fitting_scheduler(scheduler)
        if cls is None:
            return SchedulerDiagnosis(name, found, None, warnings=(reason,))
        if reason:
            notes.append(reason)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ours = cls.from_config(scheduler.config, **shaping)
        except (ValueError, TypeError) as error:
            return SchedulerDiagnosis(name, found, None, warnings=(str(error).rstrip("."),))
        settings = ", ".join(f"{key}={value!r}" for key, value in shaping.items() if value != _default(cls, key))
        code = f"from diffusers_kts import {cls.__name__}\n"
        made = f"{cls.__name__}.from_config(pipe.{name}.config{', ' * bool(settings)}{settings})"
        code += f"pipe.update_components({name}={made})" if isinstance(pipe, ModularPipeline) else f"pipe.{name} = {made}"
    try:
        schedule = _set_schedule(type(pipe).__name__, ours, steps)
    except (ValueError, RuntimeError, TypeError) as error:
        return SchedulerDiagnosis(name, found, cls.__name__, code, warnings=(f"its schedule could not be set ({error})",))
    if "." in name:
        alarms.append(f"it belongs to a sub-pipeline, which pipe.scheduler does not reach: set pipe.{name} too")
    elif any(isinstance(part, DiffusionPipeline) for part in vars(pipe).values()):
        alarms.append("it takes no step, the pipelines inside this one have their own schedulers")
    elif isinstance(pipe, DiffusionPipeline) and name not in pipe.components:
        alarms.append("save_pretrained does not save it: give scheduler= again when you load the pipeline")
    notes += _double_shift(ours, steps)
    moved, late = ours.net_displacement(0), None
    strength = _parameters(pipe).get("strength")
    if strength is not None and isinstance(strength.default, float) and strength.default < 1:
        begin = max(steps - int(steps * strength.default), 0) * ours.order
        late = begin, ours.net_displacement(min(begin, len(ours.gains) - 1))
    for displacement in (moved, late[1] if late else 1.0):
        if abs(displacement - 1) > 0.05:
            alarms.append(f"net displacement {displacement:.3f}: the rest stays in the image as noise, or overshoots")
    if len(ours.gains) <= FEW_STEPS * ours.order:
        alarms.append("a schedule of so few steps (distilled) has coarse gains: the last one alone decides what noise remains")
    table = ours.schedule_table()
    if not any(row["phase"] != "launch" for row in table):
        alarms.append("no evaluation is in the landing: beta_0 does nothing here")
    return SchedulerDiagnosis(
        name, found, cls.__name__, code, schedule, table, moved, late, tuple(notes), tuple(dict.fromkeys(alarms))
    )


def _double_shift(ours: Any, steps: int) -> list[str]:
    """What diffusers issue 13243 does: without levels of the pipeline's own, the lowest one is shifted twice."""
    config = ours.config
    shift = config.get("shift") or 1
    known = isinstance(ours, FlowMatchEulerDiscreteScheduler) and not config.get("use_dynamic_shifting")
    if not known or shift == 1 or len(ours.sigmas) != steps + 1:
        return []
    lowest, last = float(ours.sigma_min), float(ours.sigmas[-2])
    if not lowest * 1.01 < last < lowest * shift * 1.01:
        return []  # the pipeline's levels, or a touchdown
    levels = np.linspace(1, lowest / (shift - (shift - 1) * lowest), steps)
    once = 1 - shift * levels / (1 + (shift - 1) * levels)
    landing = int((once >= config.tau_split).sum())
    return [
        f"the shift of {shift:g} acts twice on the lowest levels (diffusers issue 13243): the last step begins at sigma "
        f"{last:.4f}, not {lowest:.4f}. Launch and landing follow the levels as they are: "
        f"{sum(row['phase'] == 'landing' for row in ours.schedule_table())} steps land, {landing} with one shift"
    ]


def _default(cls: Any, name: str) -> Any:
    return inspect.signature(cls.__init__).parameters[name].default


def _set_schedule(pipeline: str, ours: Any, steps: int) -> str:
    """Set the schedule as such pipelines do; a description of it."""
    if COSMOS in _remarks_of(pipeline) and isinstance(ours, FlowMatchEulerDiscreteScheduler):
        ours.set_timesteps(sigmas=np.linspace(0, 1, steps))  # and the configuration makes Karras levels of them
        return f"{steps} levels of the pipeline's own"
    config, takes = ours.config, inspect.signature(ours.set_timesteps).parameters
    given: dict[str, Any] = {"num_inference_steps": steps}
    # with a single training timestep (StableAudio3) the scheduler's own levels would all be 1
    if "sigmas" in takes and (config.get("use_dynamic_shifting") or config.num_train_timesteps == 1):
        given = {"sigmas": np.linspace(1, 1 / steps, steps)}
    if config.get("use_dynamic_shifting"):
        mu = float(config.get("max_shift") or 1.15)
        ours.set_timesteps(mu=mu, **given)
        return f"sigmas from 1 to 1/{steps}, shifted by mu {mu:g} (the pipeline sets mu by the resolution)"
    ours.set_timesteps(**given)
    shift = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
    called = f"sigmas from 1 to 1/{steps}" if "sigmas" in given else f"set_timesteps({steps})"
    return called + (f", shift {shift:g}" if shift is not None else "")


def _try(pipe: Any, diagnosis: Diagnosis, shaping: dict[str, Any]) -> str:
    """Run a few steps with the scheduler as it is and with ours, from the same seed."""
    main = next((s for s in diagnosis.schedulers if s.name == "scheduler"), None)
    try:
        arguments = _arguments(pipe)
        outputs = [_run(KPEMonitorPipeline.from_pipe(pipe), arguments)]
        if main is not None and main.use is not None and not isinstance(pipe.scheduler, KTSSchedulerMixin):
            cls, _ = fitting_scheduler(pipe.scheduler)
            ours = cls.from_config(pipe.scheduler.config, **shaping)
            outputs.append(_run(KPEMonitorPipeline.from_pipe(pipe, scheduler=ours), arguments))
    except Exception as error:  # whatever a pipeline we do not know raises on arguments that we guessed
        return (
            f"not possible with guessed arguments ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        )
    texts = []
    for heading, (output, trace) in zip(("as it is", "shaped"), outputs, strict=False):
        energy = "no step reached the scheduler" if trace is None else f"energy per dim {float(trace.per_dim.mean()):.4g}"
        finite = "" if np.isfinite(output).all() else ", NOT FINITE"
        texts.append(f"{heading}: {energy}{finite}")
    if len(outputs) == 2 and outputs[0][0].shape == outputs[1][0].shape:
        change = float(np.linalg.norm(outputs[1][0] - outputs[0][0])) / max(float(np.linalg.norm(outputs[0][0])), 1e-12)
        texts.append(f"the result changes by {change:.2%}")
    return "; ".join(texts)


def _run(monitor: Any, arguments: dict[str, Any]) -> tuple[np.ndarray, Any]:
    monitor.set_progress_bar_config(disable=True)
    generator = {"generator": torch.Generator("cpu").manual_seed(0)} if "generator" in _parameters(monitor) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = monitor(**arguments, **generator, return_dict=False)[0]
    array = output.float().cpu().numpy() if isinstance(output, torch.Tensor) else np.asarray(output[0], dtype=float)
    return array, monitor.kpe


def _arguments(pipe: Any) -> dict[str, Any]:
    """A small call."""
    guesses: dict[str, Any] = {
        "prompt": "a red fox in the snow",
        "class_labels": [0],
        "image": PIL.Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8)),
        "mask_image": PIL.Image.fromarray(np.full((64, 64), 255, dtype=np.uint8)),
        "height": 64,
        "width": 64,
        "num_frames": 9,
        "num_inference_steps": TRIAL_STEPS,
        "max_sequence_length": 32,
        "output_type": "latent",
    }
    parameters = _parameters(pipe)
    optional_pictures = {name for name in ("image", "mask_image") if parameters.get(name) is None}
    return {name: value for name, value in guesses.items() if name in parameters and name not in optional_pictures}
