"""KPEMonitorPipeline and KPECallback: the kinetic path energy of any flow-matching pipeline while it runs, and of diffusion
pipelines (SDXL, SD 1.5, DiT) in flow coordinates, where the two compare.

The velocity is read in ``scheduler.step``, where it is exact, guided, and includes the first step. A scheduler of ours
records by itself; any other gets, for the length of one call, a recording subclass of its own class (same name and module,
so that pipelines, saving and deep copies notice nothing).
"""

import copy
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    LTXEulerAncestralRFScheduler,
    ModularPipeline,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import PipelineCallback

from ..flow_coordinates import DIFFUSION, exploding_velocity, flow_sigma, is_known, levels, velocity
from ..gain import Gain, exceeds_one
from ..kpe.trace import KPERecorder, KPETrace, token_intervals
from ..schedulers.host_copy import index_of
from .complete_weights import check_weights

FLOW_SCHEDULERS = (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    FlowMapEulerDiscreteScheduler,  # AnyFlow: the mean velocity down to the next noise level, so the energy of the chords
    LTXEulerAncestralRFScheduler,
)
SECOND_ORDER = (FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler, DPMSolverMultistepScheduler)
PIPELINES = (DiffusionPipeline, ModularPipeline)


def is_flow_matching(scheduler: Any) -> bool:
    """Whether the model behind this scheduler predicts the velocity of a flow."""
    config = getattr(scheduler, "config", {})
    return isinstance(scheduler, FLOW_SCHEDULERS) or config.get("prediction_type") == "flow_prediction"


def load_pipeline(path: str | os.PathLike, **kwargs: Any) -> DiffusionPipeline:
    """`DiffusionPipeline.from_pretrained`, which also knows the pipeline class of this package.

    Raises:
        ValueError: a local folder without a readable ``model_index.json``, or whose weights are not complete.
    """
    index = Path(path) / "model_index.json"
    if Path(path).exists():
        try:
            name = json.loads(index.read_text())["_class_name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no pipeline folder: model_index.json cannot be read ({error}).") from error
        check_weights(Path(path), **kwargs)
        if name == "ClassConditionalFlowPipeline":
            from .pipeline_flow_class_conditional import ClassConditionalFlowPipeline

            return ClassConditionalFlowPipeline.from_pretrained(path, **kwargs)
    return DiffusionPipeline.from_pretrained(path, **kwargs)


class KPEMonitorPipeline:
    """Any pipeline, with the kinetic path energy of every sample recorded; its images are the same bits.

    Energies are those of the flow. A diffusion model with DDIM, Euler, DPM-Solver++ or UniPC is measured in flow coordinates,
    see `diffusers_kts.flow_coordinates`.

        pipe = KPEMonitorPipeline.from_pipe(pipe)          # shares all components with the pipeline given
        images = pipe("a photo of a cat").images
        pipe.kpe.path_energy.total                         # (B,)

    The result is an instance of the pipeline's own class too, and what it saves loads in plain diffusers. It also serves as
    a base, ``class MonitoredSD3(KPEMonitorPipeline, StableDiffusion3Pipeline): pass``. Modular pipelines are monitored in
    the same way; they have no callbacks, so their record is read after the call.

    Attributes:
        kpe (`KPETrace`): of the last call, of ``pipe.scheduler`` (its last run where a call has several); also ``out.kpe``.
        kpe_traces (`list[KPETrace]`): every stream (audio, per-frame copies) and run of the last call, never summed.
        record_turn (`bool`, defaults to False): set it to have the turn of the velocity recorded too, which
            `KPETrace.settling` needs; costs one kept copy of the velocity per stream.
    """

    kpe: KPETrace | None = None
    kpe_traces: list[KPETrace] = []
    record_turn: bool = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is KPEMonitorPipeline:
            raise TypeError(
                "a monitored pipeline is made of another: KPEMonitorPipeline.from_pipe(pipe), .from_pretrained(path)."
            )
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__call__ is KPEMonitorPipeline.__call__ and issubclass(cls, PIPELINES):
            # so that help() and tab completion show the arguments of the pipeline itself
            monitored = KPEMonitorPipeline.__call__
            wrap = functools.wraps(plain_class(cls).__call__)
            setattr(cls, "__call__", wrap(lambda self, *a, **k: monitored(self, *a, **k)))  # noqa: B010 (mypy)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline | ModularPipeline, **kwargs: Any) -> Any:
        """A monitored pipeline that shares the components of ``pipeline``, which itself is left as it is.

        Args:
            pipeline (`DiffusionPipeline` or `ModularPipeline`): any whose schedulers are flow-matching, or among the
                four above.
            kwargs: components to replace, for instance ``scheduler=``.

        Raises:
            TypeError: not a pipeline, or a name that is no component. ValueError: another scheduler.
        """
        if not isinstance(pipeline, PIPELINES):
            given = type(pipeline).__name__
            raise TypeError(f"from_pipe got {given}; give a diffusers pipeline, or a path to from_pretrained.")
        if cls is not KPEMonitorPipeline and not isinstance(pipeline, plain_class(cls)):  # of another kind: diffusers converts
            return super().from_pipe(pipeline, **kwargs)  # type: ignore[misc]
        unknown = sorted(set(kwargs) - set(pipeline.components))
        if unknown:
            raise TypeError(
                f"{type(pipeline).__name__} has no component {unknown[0]!r}; it has {', '.join(pipeline.components)}."
            )
        monitor = copy.copy(pipeline)
        monitor.__class__ = _monitored_class(plain_class(type(pipeline))) if cls is KPEMonitorPipeline else cls
        if isinstance(monitor, ModularPipeline):
            monitor._component_specs = dict(monitor._component_specs)  # updated in place, and the original keeps its own
            monitor.update_components(**kwargs)
        else:
            for name, component in kwargs.items():
                setattr(monitor, name, component)
        _flow_schedulers(monitor)
        return monitor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As `DiffusionPipeline.from_pretrained`, with the same arguments, monitored."""
        if cls is not KPEMonitorPipeline:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        return cls.from_pipe(load_pipeline(pretrained_model_name_or_path, **kwargs))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as the plain pipeline class, so that diffusers loads it without this package."""
        monitored = self.__class__
        self.__class__ = plain_class(monitored)
        try:
            self.save_pretrained(save_directory, **kwargs)
        finally:
            self.__class__ = monitored

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _recording(self) as recorders:
            try:
                output = super().__call__(*args, **kwargs)  # type: ignore[misc]
            finally:
                self.kpe_traces = [trace for recorder in recorders for trace in recorder.traces()]
                main = [trace for trace in self.kpe_traces if trace.stream == "scheduler"] or self.kpe_traces
                self.kpe = main[-1] if main else None
        if hasattr(output, "__dict__"):  # a tuple, list or array takes no attribute
            output.kpe = self.kpe
        return output


class KPECallback(PipelineCallback):
    """The record, step by step, in the user's code: ``pipe(..., callback_on_step_end=KPECallback(on_step))``.

    Works where energies are recorded: under `KPEMonitorPipeline`, or with `KTSFlowMatchScheduler` in any pipeline. Can be a
    part of `MultiPipelineCallbacks`.

    Args:
        on_step (callable, *optional*): called as ``on_step(step_index, trace)`` with the `KPETrace` so far. Reading it waits
            for the device; without ``on_step`` nothing does.
    """

    tensor_inputs = ["latents"]

    def __init__(self, on_step: Callable[[int, KPETrace], Any] | None = None) -> None:
        super().__init__()
        if on_step is not None and not callable(on_step):
            raise TypeError(f"on_step is {on_step!r}; give a function of (step_index, trace), or None.")
        self.on_step = on_step
        self._recorder: KPERecorder | None = None

    @property
    def kpe(self) -> KPETrace | None:
        """The record so far of the run that called last; None before the first step."""
        return self._recorder.trace() if self._recorder is not None else None

    def callback_fn(self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict) -> dict:
        self._recorder = getattr(pipeline.scheduler, "_kpe_recorder", None)
        if self._recorder is None:
            raise RuntimeError(
                f"{type(pipeline.scheduler).__name__} records no energy; run the pipeline as "
                "KPEMonitorPipeline.from_pipe(pipe), or give it a KTSFlowMatchScheduler."
            )
        if self.on_step is not None and (trace := self.kpe) is not None:
            self.on_step(step_index, trace)
        return callback_kwargs


def plain_class(cls: type) -> Any:
    """The pipeline class itself, without the monitor."""
    return next(b for b in cls.__mro__ if issubclass(b, PIPELINES) and not issubclass(b, KPEMonitorPipeline))


@functools.cache
def _monitored_class(cls: type) -> type:
    # diffusers goes by a pipeline's name and module (saving, AutoPipeline): both stay
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (KPEMonitorPipeline, cls), names)


def schedulers_of(pipeline: Any) -> dict[str, Any]:
    """Every scheduler of the pipeline and of pipelines inside it, by attribute name."""
    found: dict[str, Any] = {}
    for name, value in vars(pipeline).items():
        if isinstance(value, SchedulerMixin):
            found[name] = value
        elif isinstance(value, PIPELINES):
            found |= {f"{name}.{inner}": scheduler for inner, scheduler in schedulers_of(value).items()}
    return found


def _flow_schedulers(pipeline: Any) -> dict[str, Any]:
    """`schedulers_of` the pipeline, all of which have a path that can be measured.

    Raises:
        ValueError: there is none, or one whose path is not known.
    """
    found = schedulers_of(pipeline)
    if not found:
        raise ValueError(f"{type(pipeline).__name__} has no scheduler, so there is no path to measure.")
    for name, scheduler in found.items():
        if not is_flow_matching(scheduler) and not is_known(scheduler):
            known = ", ".join(cls.__name__ for cls in DIFFUSION)
            raise ValueError(
                f"{name} is a {type(scheduler).__name__}, not flow matching and with a path that is not known here. Give the "
                f"pipeline a FlowMatchEulerDiscreteScheduler, or for a diffusion model a {known}."
            )
    return found


@functools.cache
def _recording_class(cls: Any) -> type:
    names = list(inspect.signature(cls.step).parameters)[1:]

    @functools.wraps(cls.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.set_timesteps(self, *args, **kwargs)
        inverted = bool(self.config.get("invert_sigmas", False))
        quadrature = "trapezoid" if issubclass(cls, SECOND_ORDER) else "left"
        self._kpe_recorder.begin({"scheduler": cls.__name__}, Gain.tau_split, inverted, quadrature)
        self._kpe_levels = _Levels.of(self)
        if isinstance(self, DDIMScheduler):
            self._host_timesteps = self.timesteps.tolist()
        return result

    @functools.wraps(cls.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.step(self, *args, **kwargs)
        call = dict(zip(names, args, strict=False)) | kwargs
        token_dt, token_timesteps = None, call.get("per_token_timesteps")
        if token_timesteps is not None:
            token_dt = token_intervals(token_timesteps / self.config.num_train_timesteps, self.sigmas)
        self._kpe_recorder.observe(
            *_seen(self, call["model_output"], call.get("timestep"), call.get("sample")), token_dt=token_dt
        )
        return result

    body: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    body |= {"set_timesteps": set_timesteps, "step": step}
    if not hasattr(cls, "scale_model_input"):  # Bria calls it on every scheduler that is not exactly the stock class
        body["scale_model_input"] = lambda self, sample, timestep=None: sample
    return type(cls.__name__, (cls,), body)


def _seen(scheduler: Any, model_output: torch.Tensor, timestep: Any, sample: Any) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Number of the evaluation just made, levels of the schedule, and the velocity, all of the flow."""
    index = getattr(scheduler, "step_index", None)
    index = index_of(timestep, scheduler.timesteps) if index is None else index - 1  # DDIM counts no steps
    known: _Levels = scheduler._kpe_levels
    if isinstance(scheduler, DIFFUSION):
        return index, levels(scheduler) if known.flow is None else known.flow, velocity(scheduler, index, model_output, sample)
    sigmas: torch.Tensor = scheduler.sigmas
    if sigmas is not known.sigmas:  # a pipeline put a schedule of its own in place
        known = scheduler._kpe_levels = _Levels.of(scheduler)
    if not known.exploding:
        return index, sigmas, model_output
    return index, flow_sigma(sigmas), exploding_velocity(model_output, sample, sigmas[index])


@dataclass(frozen=True)
class _Levels:
    """What is read of a schedule before its first step, so that steps need not wait for the device."""

    sigmas: torch.Tensor | None = None
    exploding: bool = False
    flow: torch.Tensor | None = None  # of DDIM, which has no sigmas

    @classmethod
    def of(cls, scheduler: Any) -> "_Levels":
        """Waits for the device, as `set_timesteps`, which put the schedule there, has just done."""
        if isinstance(scheduler, DDIMScheduler):
            return cls(flow=levels(scheduler))
        if isinstance(scheduler, DIFFUSION):  # their sigmas never leave the host
            return cls()
        return cls(scheduler.sigmas, exceeds_one(scheduler.sigmas))


@contextmanager
def _recording(pipeline: Any) -> Iterator[list[KPERecorder]]:
    """Let every scheduler of the pipeline record, and put each back as it was, whatever happens."""
    session: list[KPERecorder] = []
    restore: list[Callable[[], None]] = []
    try:
        for name, scheduler in _flow_schedulers(pipeline).items():
            if any(getattr(scheduler, "_kpe_recorder", None) is recorder for recorder in session):
                continue  # one scheduler under two names
            restore.append(_attach(scheduler, name, session, pipeline.record_turn))
        yield session
    finally:
        for undo in restore:
            undo()


def _attach(scheduler: Any, name: str, session: list[KPERecorder], record_turn: bool) -> Callable[[], None]:
    recorder: KPERecorder
    if hasattr(scheduler, "_kpe_recorder"):  # one of ours: it records anyway
        recorder = scheduler._kpe_recorder
        recorder.stream, recorder.session, recorder.runs = name, session, []
        own_choice = recorder.record_turn

        def undo() -> None:
            recorder.session, recorder.stream, recorder.record_turn = None, "scheduler", own_choice
            recorder.runs = recorder.runs[-1:]
    else:
        cls = scheduler.__class__
        recorder = scheduler._kpe_recorder = KPERecorder(name)
        recorder.session = session
        scheduler.__class__ = _recording_class(cls)

        def undo() -> None:
            scheduler.__class__ = cls
            del scheduler._kpe_recorder
            for name in ("_kpe_levels", "_host_timesteps"):
                vars(scheduler).pop(name, None)

    recorder.record_turn |= record_turn
    session.append(recorder)
    return undo
