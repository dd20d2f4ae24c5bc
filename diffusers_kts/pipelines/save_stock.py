"""Save a shaped pipeline for people who do not have this package."""

import os
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline


def save_with_stock_scheduler(
    pipeline: DiffusionPipeline | ModularPipeline, save_directory: str | os.PathLike, **kwargs: Any
) -> None:
    """Save ``pipeline`` with the diffusers scheduler that its KTS scheduler extends, which samples unshaped there:
    `FlowMatchEulerDiscreteScheduler` (for Heun too), `UniPCMultistepScheduler`, `DDIMScheduler` and so on.

    Our settings stay in the saved configuration as extra keys, so ``KTSFlowMatchScheduler.from_config(pipe.scheduler.config)``
    brings the shaping back; diffusers warns that it ignores them, which is so. The pipeline in memory is left as it is.
    ``kwargs`` go to `save_pretrained`.
    """
    scheduler = pipeline.scheduler
    stock: Any = next(cls for cls in type(scheduler).__mro__ if cls.__module__.startswith("diffusers.schedulers."))
    _place(pipeline, stock.from_config(scheduler.config))
    try:
        pipeline.save_pretrained(save_directory, **kwargs)
    finally:
        _place(pipeline, scheduler)


def _place(pipeline: Any, scheduler: Any) -> None:
    if isinstance(pipeline, ModularPipeline):  # which keeps book of the classes of its components
        pipeline.update_components(scheduler=scheduler)
    else:
        pipeline.scheduler = scheduler
