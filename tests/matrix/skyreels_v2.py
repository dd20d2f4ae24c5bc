"""SkyReels-V2: Wan's components and UniPC; diffusion forcing gives every latent frame its own schedule."""

from typing import Any

from diffusers import (
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
)
from tiny_pipelines import _wan_components

from .checks import CHECKS
from .clips import clip
from .inputs import picture
from .registry import Limit, register
from .wan import CONDITIONED, IMAGE_DIM, MODEL, wan_call, with_image_encoder


def components(**more: Any) -> dict[str, Any]:
    return _wan_components() | {"transformer": SkyReelsV2Transformer3DModel(**MODEL, **more)}


def conditioned() -> dict[str, Any]:
    return with_image_encoder(
        SkyReelsV2Transformer3DModel(in_channels=CONDITIONED, image_dim=IMAGE_DIM, added_kv_proj_dim=24, **MODEL)
    )


def forced(**more: Any) -> dict[str, Any]:
    return wan_call(num_frames=9, base_num_frames=9, addnoise_condition=0, **more)


NO_EULER = dict.fromkeys(
    CHECKS,
    Limit(
        "every latent frame has a whole number as a timestep of its own, which Euler flow schedulers refuse",
        error="[Ii]nteger",
    ),
)

register(SkyReelsV2Pipeline, components, lambda: wan_call(num_frames=5))
register(SkyReelsV2ImageToVideoPipeline, conditioned, lambda: wan_call(image=picture(16), num_frames=5))
register(SkyReelsV2DiffusionForcingPipeline, components, forced, limits=NO_EULER)
register(
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    components,
    lambda: forced(image=picture(16)),
    limits=NO_EULER,
)
register(
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    components,
    lambda: forced(video=clip(5), overlap_history=5) | {"num_frames": 13},
    limits=NO_EULER,
)
