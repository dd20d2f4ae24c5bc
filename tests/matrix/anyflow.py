"""AnyFlow: flow maps, whose network predicts the mean velocity down to the next noise level. Wan's other components."""

from typing import Any

from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
)
from tiny_pipelines import _wan_components

from .registry import register
from .wan import MODEL, wan_call


def components(transformer: Any) -> dict[str, Any]:
    return _wan_components() | {"transformer": transformer, "scheduler": FlowMapEulerDiscreteScheduler(shift=5.0)}


register(AnyFlowPipeline, lambda: components(AnyFlowTransformer3DModel(**MODEL)), lambda: wan_call(num_frames=5))
register(
    AnyFlowFARPipeline,  # frame by frame, each a run of its own
    lambda: components(AnyFlowFARTransformer3DModel(chunk_partition=(1, 1), full_chunk_limit=2, **MODEL)),
    lambda: wan_call(num_frames=5, height=32, width=32),
)
