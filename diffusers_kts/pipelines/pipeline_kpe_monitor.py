"""KPEMonitorPipeline: the kinetic path energy of any flow-matching pipeline while it runs, and of diffusion pipelines (SDXL,
SD 1.5, DiT) in flow coordinates, where the two compare."""

import copy
import functools
import os
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..kpe.recording import PIPELINES, main_trace, measurable_schedulers, namesake, recording
from ..kpe.trace import KPETrace
from .loading import load_pipeline


class KPEMonitorPipeline:
    """Any pipeline, with the kinetic path energy of every sample recorded; its images are the same bits.

    Energies are those of the flow. A diffusion model with DDIM, Euler, DPM-Solver++ or UniPC is measured in flow coordinates,
    see `diffusers_kts.flow_coordinates`.

    Examples:
        >>> from diffusers_kts import ClassConditionalFlowPipeline, embedded_model
        >>> pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> monitor = KPEMonitorPipeline.from_pipe(pipe)  # shares all components with the pipeline given
        >>> images = monitor("Bag", num_images_per_prompt=3, num_inference_steps=4).images
        >>> monitor.kpe.per_dim.shape
        torch.Size([3])

    The result is an instance of the pipeline's own class too, and what it saves loads in plain diffusers. It also serves as
    a base, ``class MonitoredSD3(KPEMonitorPipeline, StableDiffusion3Pipeline): pass``. Modular pipelines are monitored in
    the same way; they have no callbacks, so their record is read after the call.

    Attributes:
        kpe (`KPETrace`): of the last call, of ``pipe.scheduler`` (its last run where a call has several); also ``out.kpe``.
        kpe_traces (`list[KPETrace]`): every stream (audio, per-frame copies) and run of the last call, never summed.
        record_turn (`bool`, defaults to False): set it to have the turn of the velocity recorded too, which
            `KPETrace.settling` needs; costs one kept copy of the velocity per stream.
        record_guidance (`bool`, defaults to False): set it to have classifier-free guidance recorded too, from the outputs of
            the pipeline's ``transformer`` or ``unet``, which `KPETrace.conditional_energy` and `KPETrace.guidance_energy`
            need. It keeps the outputs until the step, which then makes more than thirty passes over the velocity, many more
            than without, and needs six to nine copies of it in fp32 for the time.
    """

    kpe: KPETrace | None = None
    kpe_traces: list[KPETrace] = []
    record_turn: bool = False
    record_guidance: bool = False

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
        measurable_schedulers(monitor)
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
        asking = [self, *callbacks_in(*args, *kwargs.values())]
        turn, guidance = (any(getattr(one, n, False) for one in asking) for n in ("record_turn", "record_guidance"))
        with recording(self, turn, guidance) as session:
            try:
                output = super().__call__(*args, **kwargs)  # type: ignore[misc]
            finally:
                self.kpe_traces = session.traces()
                self.kpe = main_trace(self.kpe_traces)
        if hasattr(output, "__dict__"):  # a tuple, list or array takes no attribute
            output.kpe = self.kpe
        return output


def callbacks_in(*arguments: Any) -> list[PipelineCallback]:
    """The callbacks among the arguments of a pipeline call, one by one."""
    groups = [given.callbacks if isinstance(given, MultiPipelineCallbacks) else [given] for given in arguments]
    return [part for group in groups for part in group if isinstance(part, PipelineCallback)]


def plain_class(cls: type) -> Any:
    """The pipeline class itself, without the monitor."""
    return next(b for b in cls.__mro__ if issubclass(b, PIPELINES) and not issubclass(b, KPEMonitorPipeline))


@functools.cache
def _monitored_class(cls: type) -> type:
    return namesake(cls, {}, KPEMonitorPipeline)
