"""Stable Diffusion 3: text, image, inpainting, ControlNet and perturbed-attention pipelines on one set of tiny components."""

from functools import partial
from typing import Any

from diffusers import (
    SD3ControlNetModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from tiny_pipelines import _sd3_components, call_kwargs

from .inputs import call, image, mask
from .parts import variant
from .registry import register


def with_sixteen_channels() -> dict[str, Any]:
    """Inpainting pipelines insist on SD3's own number of latent channels."""
    components = _sd3_components()
    return components | {
        "vae": variant(components["vae"], latent_channels=16),
        "transformer": variant(components["transformer"], in_channels=16, out_channels=16),
    }


def with_controlnet(extra_channels: int = 0) -> dict[str, Any]:
    components = with_sixteen_channels()
    config = dict(components["transformer"].config) | {"num_layers": 1, "extra_conditioning_channels": extra_channels}
    controlnet = SD3ControlNetModel.from_config(config)  # from_transformer writes into the transformer's own config
    return components | {"controlnet": controlnet}


arguments = partial(call, partial(call_kwargs, "sd3"))
started = {"image": image, "strength": 0.75}
controlled = {"control_image": lambda: image(seed=3)}


register(StableDiffusion3Pipeline, _sd3_components, arguments())
register(StableDiffusion3Img2ImgPipeline, _sd3_components, arguments(**started))
register(StableDiffusion3InpaintPipeline, with_sixteen_channels, arguments(**started, mask_image=mask))
register(StableDiffusion3ControlNetPipeline, with_controlnet, arguments(**controlled))
register(StableDiffusion3ControlNetInpaintingPipeline, lambda: with_controlnet(1), arguments(**controlled, control_mask=mask))
register(StableDiffusion3PAGPipeline, _sd3_components, arguments(pag_scale=2.0))
register(StableDiffusion3PAGImg2ImgPipeline, _sd3_components, arguments(**started, pag_scale=2.0))
