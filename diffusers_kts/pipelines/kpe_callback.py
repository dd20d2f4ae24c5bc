"""KPECallback: the energy record, step by step, in the user's code."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback

from ..kpe.recorder import KPERecorder
from ..kpe.recording import Session, main_trace, measurable_schedulers, namesake, recording
from ..kpe.trace import KPETrace
from .pipeline_kpe_monitor import KPEMonitorPipeline, callbacks_in


class KPECallback(PipelineCallback):
    """Measures a pipeline call that it is given to, whatever scheduler the pipeline has.

    Examples:
        >>> from diffusers_kts import ClassConditionalFlowPipeline, embedded_model
        >>> pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> energy = KPECallback(pipe)
        >>> images = pipe(["Bag", "Coat"], num_inference_steps=4, callback_on_step_end=energy).images
        >>> energy.kpe.path_energy.total.shape, energy.kpe.num_steps
        (torch.Size([2]), 4)

    With ``pipe``, the record begins with the first step, and the scheduler is its own class again when the call ends, also
    when it raises. To that end the pipeline becomes an instance of a subclass of its class, of the same name, which acts only
    in calls that this callback is given to. Without ``pipe`` it delivers the record where energies are recorded anyway: under
    `KPEMonitorPipeline`, or with a KTS scheduler. It can be a part of `MultiPipelineCallbacks`.

    Args:
        pipe (`DiffusionPipeline`, *optional*): the pipeline to measure.
        on_step (callable, *optional*): called as ``on_step(step_index, trace)`` with the `KPETrace` so far. Reading it waits
            for the device; without ``on_step`` nothing does.
        record_turn (`bool`, defaults to False): whether the turn of the velocity is recorded too, see `KPETrace.settling`.
        record_guidance (`bool`, defaults to False): whether classifier-free guidance is recorded too, see
            `KPEMonitorPipeline`.

    Raises:
        TypeError: ``pipe`` is not a pipeline, or takes no callback; or ``on_step`` is not a function.
        ValueError: the pipeline has a scheduler whose path is not known.
    """

    tensor_inputs = ["latents"]

    def __init__(
        self,
        pipe: DiffusionPipeline | Callable[[int, KPETrace], Any] | None = None,
        on_step: Callable[[int, KPETrace], Any] | None = None,
        record_turn: bool = False,
        record_guidance: bool = False,
    ) -> None:
        super().__init__()
        if on_step is None and callable(pipe) and not isinstance(pipe, DiffusionPipeline):
            pipe, on_step = None, pipe  # KPECallback(on_step)
        if on_step is not None and not callable(on_step):
            raise TypeError(f"on_step is {on_step!r}; give a function of (step_index, trace), or None.")
        self.on_step = on_step
        self.record_turn = record_turn
        self.record_guidance = record_guidance
        self.session: Session | None = None
        self._recorder: KPERecorder | None = None
        if pipe is not None:
            _listen(pipe)

    @property
    def kpe(self) -> KPETrace | None:
        """The record of the last call, or so far; None before the first step."""
        if self.session is not None:
            return main_trace(self.session.traces())
        return self._recorder.trace() if self._recorder is not None else None

    def callback_fn(self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict) -> dict:
        """Called by the pipeline after each step."""
        self._recorder = getattr(pipeline.scheduler, "recorder", None)
        if self._recorder is None:
            raise RuntimeError(
                f"{type(pipeline.scheduler).__name__} records no energy; run the pipeline as "
                "KPEMonitorPipeline.from_pipe(pipe), make the callback of the pipeline, KPECallback(pipe), or give it a KTS "
                "scheduler."
            )
        if self.on_step is not None and (trace := self._recorder.trace()) is not None:
            self.on_step(step_index, trace)
        return callback_kwargs


def _listen(pipe: Any) -> None:
    """Let the pipeline record the calls that a callback is given to."""
    if not isinstance(pipe, DiffusionPipeline):
        raise TypeError(
            f"KPECallback got {pipe!r}; give a diffusers pipeline, a function on_step(step_index, trace), or nothing."
        )
    if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
        raise TypeError(f"{type(pipe).__name__} calls no callback; measure it with KPEMonitorPipeline.from_pipe(pipe).")
    measurable_schedulers(pipe)
    if not isinstance(pipe, KPEMonitorPipeline):
        cls: Any = type(pipe)
        pipe.__class__ = _listening_class(cls)


@functools.cache
def _listening_class(cls: Any) -> type:
    if getattr(cls, "listens_to_callbacks", False):
        return cls

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [part for part in callbacks_in(*args, *kwargs.values()) if isinstance(part, KPECallback)]
        if not given:
            return cls.__call__(self, *args, **kwargs)
        turn, guidance = (any(getattr(c, name) for c in given) for name in ("record_turn", "record_guidance"))
        with recording(self, turn, guidance) as session:
            for callback in given:
                callback.session = session
            return cls.__call__(self, *args, **kwargs)

    return namesake(cls, {"__call__": call, "listens_to_callbacks": True})
