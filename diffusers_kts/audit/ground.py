"""What every audit holds samples against, found and checked before anything is drawn."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..features.choice import feature_space
from ..features.feature_space import FeatureSpace
from ..images.folders import check_formats
from ..images.training_images import load_images
from ..sampling.find import find_images
from .copies import CopyMeasures
from .measures import Yardsticks
from .sampling import PlainSampler
from .settings import AuditSettings
from .training import TrainingImages, pixels_hash


@dataclass(frozen=True, eq=False)
class Ground:
    """Real images, and the measures made of them.

    Attributes:
        size: (height, width) of all images.
        training: the training images.
        real: (n, C, H, W) those that quality is measured against.
        space: where.
        yardsticks: of these.
        copies: further measures of copies.
    """

    size: tuple[int, int]
    training: TrainingImages
    real: torch.Tensor
    space: FeatureSpace
    yardsticks: Yardsticks
    copies: CopyMeasures

    @classmethod
    def of(cls, settings: AuditSettings, training: Path, drawn: tuple[int, int, int], device: torch.device) -> "Ground":
        """
        Args:
            settings (`AuditSettings`): what to compare, and how.
            training (`Path`): of the training images.
            drawn (`tuple[int, int, int]`): (C, H, W) of the images that the model draws.
            device (`torch.device`): where a feature network runs.

        Raises:
            ValueError: images or a feature network that cannot be read or do not suit.
        """
        resize = settings.image_size is not None
        size = (settings.image_size, settings.image_size) if settings.image_size is not None else drawn[1:]
        shape = (drawn[0], *size)
        space = feature_space(settings.features, device, shape)
        images = TrainingImages.load(training, shape, resize)
        real = images.images if settings.reference is None else load_images(settings.reference, shape, resize)
        yardsticks = Yardsticks.of(images, real, space, settings.neighbors == "features")
        held_out = None if settings.reference is None else (real, yardsticks.real_features)
        copies = CopyMeasures(images, yardsticks.training_features, space, settings.threshold, held_out)
        return cls(size, images, real, space, yardsticks, copies)

    @property
    def sha256(self) -> dict[str, str]:
        digests = {"training_images": self.training.sha256, "reference": pixels_hash(self.real), "features": self.space.sha256}
        return {name: digest for name, digest in digests.items() if digest is not None}

    def notes(self, settings: AuditSettings) -> list[str]:
        """What a reader of the figures must know of them."""
        notes = [f"Frechet distance, precision and recall are measured in {self.space.note}"] if self.space.note else []
        if settings.reference is None:
            notes.append(
                "Frechet distance, precision and recall are against the training images: a model that copies them looks "
                "better than it is. Give held-out images with --reference."
            )
        d = self.yardsticks.real_features.shape[1]
        if settings.num_samples <= d:
            notes.append(
                f"There are {settings.num_samples} samples for {d} features: the Frechet distance is biased upwards, and "
                "compares within this report only."
            )
        if copies := len(self.training.images) - len(self.training.distinct):
            notes.append(f"{copies} training images are copies of others and were left out, so that d2 is to another image.")
        if self.training.resize != "none":
            notes.append(f"Training images were {self.training.resize}. Copies may be missed if the training saw other parts.")
        if self.copies.equal:
            notes.append(
                f"{self.copies.equal} reference images equal a training image. They are left out where real images "
                "calibrate a threshold."
            )
        if self.training.close:
            notes.append(
                f"{len(self.training.close)} pairs of training images are nearly equal. A sample that repeats one of them is "
                "as near to the other, so F_mem may not count it."
            )
        return notes


def image_paths(settings: AuditSettings, folder: Path) -> Path:
    """Where the training images are; the reference is looked for, too.

    Raises:
        ValueError: nowhere, in the output folder, or in part of a format that is not read.
    """
    if settings.reference is not None:
        check_formats(find_images(folder, settings.reference, "--reference", settings.output))
    training = find_images(folder, settings.training_images, "--training-images", settings.output)
    check_formats(training)
    return training


def about(sampler: PlainSampler, device: torch.device) -> dict[str, str]:
    """What ``report.json`` says of the model, and of where it ran."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    task = "text-to-image" if sampler.sampler.subject == "prompt" else "unconditional-image-generation"  # the Hub's names
    return {"model": sampler.sampler.settings.model, "task": task, "device": name}


def measured_in(ground: Ground, space: str) -> dict[str, Any]:
    """What ``report.json`` says of the images."""
    return {
        "frechet_space": ground.space.name,
        "neighbor_space": space,
        "training_images": ground.training.summary(),
        "reference": len(ground.real),
    }
