"""VisualCloze: a grid of pictures with one to paint, and the combined pipeline that enlarges the result in a second run."""

from typing import Any

from diffusers import VisualClozeGenerationPipeline, VisualClozePipeline

from .flux import PACKED, flux_components
from .inputs import picture, small
from .registry import Tiny, assemble, register, tiny


def grid_call(**more: Any) -> dict[str, Any]:
    example, query = [picture(), picture(seed=2)], [picture(seed=3), None]
    arguments = {"task_prompt": "a task", "content_prompt": "a fox", "image": [example, query], "max_sequence_length": 32}
    call = small(**arguments | more)
    del call["height"], call["width"]  # the grid's size is that of its pictures
    return call


def generation() -> dict[str, Any]:
    return flux_components(3 * PACKED) | {"resolution": 32}


register(VisualClozeGenerationPipeline, generation, grid_call)


@tiny(VisualClozePipeline)
def combined() -> Tiny:
    pipe = assemble(VisualClozePipeline, generation)
    for inner in (pipe.generation_pipe, pipe.upsampling_pipe):
        inner.set_progress_bar_config(disable=True)
    return Tiny(pipe, lambda: grid_call(upsampling_height=32, upsampling_width=32))
