"""Recording of the energy while a pipeline runs, with whatever scheduler it has.

A KTS scheduler records by itself. Any other gets, for the length of the run, a recording subclass of its own class (same name
and module, so that pipelines, saving and deep copies notice nothing). The velocity is read in ``scheduler.step``, where it is
exact, guided, and includes the first step.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline, SchedulerMixin

from ..gain import Gain
from .guidance import watch
from .recorder import KPERecorder, Run, Source
from .stock_schedulers import (
    DIFFUSION,
    UNMEASURABLE,
    Schedule,
    is_flow_matching,
    is_known_diffusion,
    quadrature_of,
    velocity,
)
from .sums import token_intervals
from .trace import KPETrace

PIPELINES = (DiffusionPipeline, ModularPipeline)
METHODS = ("set_timesteps", "step")


def schedulers_of(pipeline: Any) -> dict[str, Any]:
    """Every scheduler of the pipeline and of pipelines inside it, by attribute name."""
    found: dict[str, Any] = {}
    for name, value in vars(pipeline).items():
        if isinstance(value, SchedulerMixin):
            found[name] = value
        elif isinstance(value, PIPELINES):
            found |= {f"{name}.{inner}": scheduler for inner, scheduler in schedulers_of(value).items()}
    return found


def measurable_schedulers(pipeline: Any) -> dict[str, Any]:
    """`schedulers_of` the pipeline, all of which have a path that can be measured.

    Raises:
        ValueError: there is none, or one whose path is not known.
    """
    found = schedulers_of(pipeline)
    if not found:
        raise ValueError(f"{type(pipeline).__name__} has no scheduler, so there is no path to measure.")
    for name, scheduler in found.items():
        kind = type(scheduler).__name__
        if kind in UNMEASURABLE:
            raise ValueError(f"{name} is a {kind}, whose energy cannot be measured: {UNMEASURABLE[kind]}.")
        if not is_flow_matching(scheduler) and not is_known_diffusion(scheduler):
            known = ", ".join(DIFFUSION)
            raise ValueError(
                f"{name} is a {kind}, not flow matching and with a path that is not known here. Give the pipeline a "
                f"FlowMatchEulerDiscreteScheduler, or for a diffusion model a {known}."
            )
    return found


class Session:
    """What a pipeline call has recorded: a recorder for every scheduler and every copy of one."""

    def __init__(self) -> None:
        self.recorders: list[KPERecorder] = []

    def traces(self) -> list[KPETrace]:
        """Every stream (audio, per-frame copies) and run, never summed."""
        return [trace for recorder in self.recorders for trace in recorder.traces()]


def main_trace(traces: list[KPETrace]) -> KPETrace | None:
    """The last run of ``pipe.scheduler``, or of another scheduler if that has none."""
    main = [trace for trace in traces if trace.stream == "scheduler"] or traces
    return main[-1] if main else None


@contextmanager
def recording(pipeline: Any, record_turn: bool = False, record_guidance: bool = False) -> Iterator[Session]:
    """Let every scheduler of the pipeline record, and put each back as it was, whatever happens. Guidance is recorded by
    ``pipeline.scheduler`` alone: no other is known to step what the network puts out first.

    Raises:
        ValueError: as `measurable_schedulers`.
    """
    session = Session()
    restore: list[Callable[[], None]] = []
    try:
        for name, scheduler in measurable_schedulers(pipeline).items():
            if any(getattr(scheduler, "recorder", None) is recorder for recorder in session.recorders):
                continue  # one scheduler under two names
            restore.append(attach(scheduler, name, session, record_turn))
            if record_guidance and name == "scheduler":
                restore.append(watch(pipeline, scheduler.recorder))
        yield session
    finally:
        for undo in restore:
            undo()
        for recorder in session.recorders:
            recorder.close()


def attach(scheduler: Any, name: str, session: Session, record_turn: bool = False) -> Callable[[], None]:
    """Let one scheduler record into ``session`` under ``name``; the result puts it back as it was."""
    if hasattr(scheduler, "recorder"):  # a KTS scheduler, or one that records already
        recorder: KPERecorder = scheduler.recorder
        before = recorder.stream, recorder.session, recorder.record_turn, recorder.record_displacement
        recorder.stream, recorder.session, recorder.runs = name, session.recorders, []

        def undo() -> None:
            recorder.stream, recorder.session, recorder.record_turn, recorder.record_displacement = before
            recorder.runs = recorder.runs[-1:]
    else:
        cls, replaced = scheduler.__class__, {name: vars(scheduler).pop(name) for name in METHODS if name in vars(scheduler)}
        recorder = scheduler.recorder = KPERecorder(name)
        recorder.session = session.recorders
        scheduler.__class__ = _recording_class(_with_methods(cls, replaced))

        def undo() -> None:
            scheduler.__class__ = cls
            vars(scheduler).update(replaced)
            for attribute in ("recorder", "recorded_schedule"):
                vars(scheduler).pop(attribute, None)

    recorder.record_displacement = True
    recorder.record_turn |= record_turn
    session.recorders.append(recorder)
    return undo


def _with_methods(cls: type, replaced: dict[str, Callable]) -> type:
    """``cls``, or a subclass with the methods that somebody has put in the place of an instance's own."""
    if not replaced:
        return cls

    def on_class(method: Callable) -> Callable:
        return functools.wraps(method)(lambda self, *args, **kwargs: method(*args, **kwargs))

    return namesake(cls, {name: on_class(method) for name, method in replaced.items()})


def namesake(cls: type, body: dict[str, Any], *mixins: type) -> type:
    """A subclass of ``cls`` with the same name and module, by which diffusers goes in saving, loading and AutoPipeline."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (*mixins, cls), names | body)


@functools.cache
def _recording_class(cls: Any) -> type:
    names = _arguments_of_step(cls)

    @functools.wraps(cls.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.set_timesteps(self, *args, **kwargs)
        inverted = bool(self.config.get("invert_sigmas", False))
        self.recorder.begin(Run({"scheduler": cls.__name__}, Gain.tau_split, inverted, quadrature_of(cls)))
        self.recorded_schedule = Schedule.of(self)
        return result

    @functools.wraps(cls.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        model_output, timestep, sample = (given[name] for name in names[:3])
        if not hasattr(self, "step_index"):  # DDIM: a number, which both look up without waiting for the device again
            timestep = given[names[1]] = int(timestep)
            args, kwargs = (), given
        result = cls.step(self, *args, **kwargs)
        schedule: Schedule = self.recorded_schedule
        if not schedule.is_of(self):  # a pipeline put its own schedule in place
            schedule = self.recorded_schedule = Schedule.of(self)
        made = getattr(self, "step_index", None)
        index = schedule.index_of(timestep) if made is None else made - 1
        begin, end = schedule.levels[index : index + 2]
        v = velocity(self, schedule, index, model_output, sample)
        source = Source(model_output, lambda output: velocity(self, schedule, index, output, sample))
        if (token_timesteps := given.get("per_token_timesteps")) is not None:
            token_dt = token_intervals(token_timesteps / self.config.num_train_timesteps, self.sigmas)
            self.recorder.observe_tokens(v, begin, end, 1.0, token_dt, source)
        else:
            self.recorder.observe(v, begin, end, source=source)
        if index + 2 == len(schedule.levels):
            self.recorder.end_run()
        return result

    body: dict[str, Any] = {"set_timesteps": set_timesteps, "step": step}
    if not hasattr(cls, "scale_model_input"):  # Bria calls it on every scheduler that is not exactly the stock class
        body["scale_model_input"] = lambda self, sample, timestep=None: sample
    return namesake(cls, body)


def _arguments_of_step(cls: type) -> list[str]:
    """Names of the arguments of ``step``: the velocity, the timestep and the sample first, whatever they are called."""
    for kind in cls.__mro__:
        if "step" in vars(kind):
            parameters = list(inspect.signature(vars(kind)["step"]).parameters.values())
            names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
            if len(names) >= 3:
                return names
    raise ValueError(f"{cls.__name__}.step takes no velocity, timestep and sample, so its energy cannot be measured.")
