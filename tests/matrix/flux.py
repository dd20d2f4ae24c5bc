"""FLUX.1: text, image, inpainting, control, fill and Kontext pipelines, on variants of one set of tiny components."""

from functools import partial
from typing import Any

from diffusers import (
    FluxControlImg2ImgPipeline,
    FluxControlInpaintPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)
from tiny_pipelines import _flux_components, call_kwargs

from .inputs import call, image, mask
from .parts import variant
from .registry import register

PACKED = 16  # 4 latent channels in 2x2 patches


def flux_components(in_channels: int = PACKED) -> dict[str, Any]:
    """``in_channels`` counts what the pipeline lays beside the latents."""
    components = _flux_components()
    transformer = variant(components["transformer"], in_channels=in_channels, out_channels=PACKED)
    return components | {"transformer": transformer}


def with_controlnet() -> dict[str, Any]:
    components = _flux_components()
    controlnet = FluxControlNetModel.from_transformer(
        components["transformer"], num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    return components | {"controlnet": controlnet}


arguments = partial(call, partial(call_kwargs, "flux"))
started = {"image": image, "strength": 0.75}
painted = started | {"mask_image": mask}
controlled = {"control_image": lambda: image(seed=3)}
small_kontext = {"max_area": 32 * 32, "_auto_resize": False}

register(FluxPipeline, flux_components, arguments())
register(FluxImg2ImgPipeline, flux_components, arguments(**started))
register(FluxInpaintPipeline, flux_components, arguments(**painted))
register(FluxFillPipeline, lambda: flux_components(3 * PACKED), arguments(image=image, mask_image=mask))
register(FluxKontextPipeline, flux_components, arguments(image=image, **small_kontext))
register(FluxKontextInpaintPipeline, flux_components, arguments(**painted, **small_kontext))
register(FluxControlPipeline, lambda: flux_components(2 * PACKED), arguments(**controlled))
register(FluxControlImg2ImgPipeline, lambda: flux_components(2 * PACKED), arguments(**started, **controlled))
register(FluxControlInpaintPipeline, lambda: flux_components(2 * PACKED), arguments(**painted, **controlled))
register(FluxControlNetPipeline, with_controlnet, arguments(**controlled))
register(FluxControlNetImg2ImgPipeline, with_controlnet, arguments(**started, **controlled))
register(FluxControlNetInpaintPipeline, with_controlnet, arguments(**painted, **controlled))
