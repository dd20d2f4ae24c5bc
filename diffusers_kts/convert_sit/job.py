"""Published SiT weights as a pipeline folder: the work of ``kts convert-sit``."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ModelMixin

from ..errors import brief
from ..files import check_new, new_folder
from ..models.sit_weights import (
    check_values,
    has_projectors,
    has_unused_half,
    read_weights,
    sit_config,
    size_name,
    to_diffusers,
)
from ..models.transformer_sit import SiTTransformer2DModel
from ..pipelines.pipeline_flow_class_conditional import ClassConditionalFlowPipeline
from .settings import DATA_TO_NOISE, NOISE_TO_DATA, VAE, ConvertSiTSettings

CLEAR = 0.3  # a correlation that tells; trained networks have .6 to 1, random ones up to .1


@dataclass(frozen=True)
class Converted:
    """What `run_convert_sit` made: size ("SiT-XL/2"), side of the images in pixels (None without a VAE), parameters, whether
    classes have names, which way the network's own time runs, and how that is known."""

    name: str
    image_size: int | None
    parameters: int
    named_classes: bool
    time: str
    reason: str


def run_convert_sit(settings: ConvertSiTSettings) -> Converted:
    """Write a `ClassConditionalFlowPipeline` folder with the weights of a SiT. All is checked before the output appears.

    Raises:
        ValueError: no SiT of a published size, another path or prediction, or a time that nothing tells; no such VAE; labels
            that do not fit.
        OSError: the output exists and is not empty, or cannot be written.
    """
    check_new(settings.output)
    state, training = read_weights(settings.weights)
    try:
        check_training(training)
        config = sit_config(state)
        check_values(state)
        unused_half = has_unused_half(state, config)
    except ValueError as error:
        raise ValueError(f"{settings.weights}: {error}") from error
    decoder = None if settings.no_vae else load_vae(settings.vae or VAE, config["in_channels"])
    names = class_names(settings.labels, config["num_embeds_ada_norm"])
    with init_empty_weights():
        transformer = SiTTransformer2DModel(**config, reversed_time=True)
    transformer.load_state_dict(to_diffusers(state, config), assign=True)
    if settings.time:
        time, reason = settings.time, "as given"
    else:
        time, reason = network_time(training, has_projectors(state), unused_half, transformer)
    transformer.register_to_config(reversed_time=time == DATA_TO_NOISE)
    pipe = ClassConditionalFlowPipeline(transformer, FlowMatchEulerDiscreteScheduler(), decoder, names)
    with new_folder(settings.output) as folder:
        pipe.save_pretrained(folder)
    return Converted(
        name=size_name(config),
        image_size=None if decoder is None else config["sample_size"] * pipe.vae_scale_factor,
        parameters=sum(parameter.numel() for parameter in transformer.parameters()),
        named_classes=bool(names),
        time=time,
        reason=reason,
    )


def check_training(training: Mapping[str, Any]) -> None:
    """Raises ValueError if the settings of the training name another path than the linear one, or no velocity."""
    for name, fitting in (("path_type", ("linear",)), ("prediction", ("velocity", "v"))):
        value = training.get(name)
        if value is not None and str(value).lower() not in fitting:
            raise ValueError(f"these weights were trained with {name} {value!r}; give weights of {fitting[0]!r}.")


def network_time(
    training: Mapping[str, Any], projectors: bool, unused_half: bool, transformer: SiTTransformer2DModel
) -> tuple[str, str]:
    """Which way the network's own time runs, and how that is known.

    Args:
        training (`Mapping`): settings of the training, as far as the checkpoint has them.
        projectors (`bool`): whether the weights come with REPA's projectors.
        unused_half (`bool`): whether the last layer has SiT's unused half.
        transformer (`SiTTransformer2DModel`): the network with ``reversed_time``.

    Raises:
        ValueError: nothing tells.
    """
    if "prediction" in training:
        prediction = training["prediction"]
        return DATA_TO_NOISE if prediction == "v" else NOISE_TO_DATA, f"its training predicted {prediction!r}"
    if projectors:
        return DATA_TO_NOISE, "it has REPA's projectors"
    if unused_half:
        return NOISE_TO_DATA, "its last layer has the unused half of SiT's"
    found = noise_correlation(transformer)
    if abs(found) < CLEAR:
        raise ValueError(
            f"nothing tells which way the network's time runs (its velocity correlates {found:+.2f} with noise); give --time "
            f"{DATA_TO_NOISE} for weights of REPA's code, or {NOISE_TO_DATA} for SiT's."
        )
    return DATA_TO_NOISE if found > 0 else NOISE_TO_DATA, f"its velocity correlates {found:+.2f} with noise"


@torch.no_grad()
def noise_correlation(transformer: ModelMixin) -> float:
    """Correlation of fine noise at the middle of the path with the network's own velocity there.

    At time 1/2 both ways agree but for the sign: a velocity to the noise is near the noise where images have least, in the
    finest details, and one to the data is near its negative. Not from the paper.
    """
    config = transformer.config
    shape = (4, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    velocity = transformer(
        (noise / 2).to(transformer.dtype),
        timestep=torch.full((4,), 500.0),  # of 1000
        class_labels=torch.full((4,), config.num_embeds_ada_norm),
    ).sample
    return float(torch.cosine_similarity(_fine(noise), _fine(velocity.float()), dim=0))


def _fine(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.nn.functional.avg_pool2d(images, 3, 1, 1)).flatten()


def load_vae(name: str, channels: int) -> AutoencoderKL:
    """The autoencoder of a folder or Hub id.

    Raises:
        ValueError: it cannot be loaded, or its latents have another number of channels.
    """
    try:
        vae = AutoencoderKL.from_pretrained(name)
    except Exception as error:  # whatever the network, the Hub or a damaged folder make it raise
        raise ValueError(
            f"the VAE {name!r} cannot be loaded ({brief(error)}); give a folder or Hub id of an AutoencoderKL with --vae, or "
            "--no-vae for latents only."
        ) from error
    if vae.config.latent_channels != channels:
        raise ValueError(
            f"the VAE {name!r} has {vae.config.latent_channels} latent channels, the weights {channels}; give another."
        )
    return vae


def class_names(labels: Path | None, num_classes: int) -> dict[int, str]:
    """Name of each class, all different; none where there is no list of them.

    Raises:
        ValueError: the file cannot be read, or has another number of names.
    """
    if labels is None:
        names = _imagenet_names() if num_classes == 1000 else []
    else:
        try:
            names = [line.strip() for line in labels.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the labels {labels} cannot be read ({brief(error)}); give text, one class per line.") from error
        if len(names) != num_classes:
            raise ValueError(f"{labels} names {len(names)} classes, the weights have {num_classes}; give as many lines.")
    times = Counter(name.lower() for name in names)  # names are found without regard to case, and ImageNet has two cardigans
    return {i: name if times[name.lower()] == 1 else f"{name} {i}" for i, name in enumerate(names)}


def _imagenet_names() -> list[str]:
    try:
        from torchvision.models import ResNet50_Weights
    except (ImportError, RuntimeError):  # the latter where it was built for another torch
        return []
    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
