"""Published SiT weights as a pipeline folder: the work of ``kts convert-sit``."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from .errors import brief
from .files import check_new, new_folder
from .models.sit_weights import (
    check_training,
    check_values,
    is_of_repa,
    read_weights,
    sit_config,
    size_name,
    to_diffusers,
    unused_half,
)
from .models.transformer_sit import SiTTransformer2DModel
from .pipelines.pipeline_flow_class_conditional import ClassConditionalFlowPipeline

VAE = "stabilityai/sd-vae-ft-ema"  # as SiT's own sampling script


@dataclass(frozen=True)
class Converted:
    """What `convert_sit` made: size ("SiT-XL/2"), side of the images in pixels (None without a VAE), parameters, whether
    classes have names, and remarks."""

    name: str
    image_size: int | None
    parameters: int
    named_classes: bool
    notes: tuple[str, ...]


def convert_sit(
    weights: Path, output: Path, vae: str | None = VAE, labels: Path | None = None, reversed_time: bool | None = None
) -> Converted:
    """Write a `ClassConditionalFlowPipeline` folder with the weights of a SiT. All is checked before ``output`` appears.

    Args:
        weights (`Path`): ``.pt`` of SiT or REPA, of which tensors alone are read, or ``.safetensors``.
        output (`Path`): folder to make.
        vae (`str`, *optional*): folder or Hub id of an `AutoencoderKL`; None leaves it out, and the pipeline gives latents.
        labels (`Path`, *optional*): text file, a class name a line; by default ImageNet's from torchvision, if installed.
        reversed_time (`bool`, *optional*): see `SiTTransformer2DModel`; by default if the weights have REPA's projectors.

    Raises:
        ValueError: no SiT of a published size, or another path or prediction; no such VAE; labels that do not fit.
        OSError: ``output`` exists and is not empty, or cannot be written.
    """
    check_new(output)
    state, training = read_weights(weights)
    check_training(training)
    config = sit_config(state) | {"reversed_time": is_of_repa(state, training) if reversed_time is None else reversed_time}
    check_values(state)
    decoder = None if vae is None else load_vae(vae, config["in_channels"])
    names = class_names(labels, config["num_embeds_ada_norm"])
    with init_empty_weights():
        transformer = SiTTransformer2DModel(**config)
    transformer.load_state_dict(to_diffusers(state, config), assign=True)
    pipe = ClassConditionalFlowPipeline(transformer, FlowMatchEulerDiscreteScheduler(), decoder, names)
    with new_folder(output) as folder:
        pipe.save_pretrained(folder)
    notes = []
    if bool(unused_half(state, config).any()):
        notes.append(
            "the half of the last layer that SiT leaves untrained is not zero; make sure that this is no DiT, a diffusion "
            "model of the same shapes"
        )
    if config["reversed_time"]:
        notes.append("the network's own time runs from data to noise, as in REPA")
    return Converted(
        name=size_name(config),
        image_size=None if decoder is None else config["sample_size"] * pipe.vae_scale_factor,
        parameters=sum(parameter.numel() for parameter in transformer.parameters()),
        named_classes=bool(names),
        notes=tuple(notes),
    )


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
            raise ValueError(f"the labels {labels} cannot be read ({brief(error)}); give text, a class a line.") from error
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
