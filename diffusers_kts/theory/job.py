"""The work of ``kts theory``: code the images, measure, walk, picture."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..files import written_together
from ..images.image_sets import open_images
from ..memorization.neighbors import distinct_images
from ..models.empirical import EmpiricalVelocity
from ..sampling.find import find_images, find_model, load_model, num_classes
from .figures import plot_theory
from .measures import AtTime, Paths, measure_at, measure_paths
from .settings import TheorySettings

FILES = ("theory.json", "theory.png")
PIXELS, CENTERED = "[-1, 1]", "centered, range 1"
TIMES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
AT_A_TIME = 256


@dataclass
class TheoryResult:
    """What was found: by coding of the data and flow time, along paths, where it is written, and remarks for the reader."""

    found: dict[str, list[AtTime]]
    paths: Paths
    files: list[Path]
    notes: list[str]


def run_theory(settings: TheorySettings, show_progress: bool = True) -> TheoryResult:
    """Measure what the paper proves of empirical flow matching on ``settings.training_images``, in the coding of this
    package's pixel models and in that of the paper's code, and write ``theory.json`` and ``theory.png``.

    Raises:
        ValueError: unreadable or unsuitable images or model. OSError: the output folder holds other files (without
            ``overwrite``) or cannot be written to.
    """
    output = settings.output
    if output.exists() and not settings.overwrite and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; add --overwrite, or give another --output.")
    folder = None if settings.model is None else find_model(settings.model)
    path = find_images(folder or Path(), settings.training_images, "--training-images", output)
    classes, pipe = None, None
    if folder is not None:
        classes = num_classes(folder)
        pipe = None if classes is None else load_model(folder, str(settings.model))
        if pipe is None or pipe.vae is not None:
            raise ValueError(
                f"model {settings.model!r} {'takes prompts' if pipe is None else 'has a VAE'}; the closed form needs a "
                "network whose data are the images themselves: give a ClassConditionalFlowPipeline without a VAE."
            )
    images = _read(path, settings.image_size)
    if pipe is not None:
        _check_shape(pipe.transformer.config, images)
    notes = []
    kept = distinct_images(images)
    if copies := len(images) - len(kept):
        notes.append(f"{copies} images are copies of others and were left out: a point that occurs twice never dominates.")
        images = images[kept]
    codings = {PIXELS: 2 * images - 1, CENTERED: images - images.mean(0)}
    generator = torch.Generator().manual_seed(settings.seed)
    indices = torch.randint(len(images), (settings.num_samples,), generator=generator)
    noise = torch.randn(settings.num_samples, *images.shape[1:], generator=generator)
    total = len(codings) * len(TIMES) + settings.num_inference_steps
    with tqdm(total=total, unit="step", disable=not show_progress) as bar:
        found: dict[str, list[AtTime]] = {coding: [] for coding in codings}
        for coding, data in codings.items():
            model = EmpiricalVelocity(data)
            for t in TIMES:
                found[coding].append(measure_at(model, t, indices, noise))
                bar.update()
        net = None if pipe is None or classes is None else _velocity(pipe, torch.arange(len(noise)) % classes)
        paths = measure_paths(EmpiricalVelocity(codings[PIXELS]), noise, settings.num_inference_steps, net, bar.update)
    result = TheoryResult(found, paths, [output / name for name in FILES], notes)
    with written_together(output, FILES) as partial:
        (partial / "theory.json").write_text(json.dumps(_report(settings, len(images), result), indent=1) + "\n")
        plot_theory(found, paths, PIXELS).savefig(partial / "theory.png", dpi=150)
    return result


def _read(path: Path, image_size: int | None) -> torch.Tensor:
    """(n, C, H, W) in [0, 1]."""
    images = torch.cat(list(open_images(path, image_size).batches(AT_A_TIME))).float() / 255
    if len(images) < 2:
        raise ValueError(f"{path} holds {len(images)} picture; give at least two.")
    return images


def _check_shape(config: Any, images: torch.Tensor) -> None:
    wanted = (config.in_channels, config.sample_size, config.sample_size)
    if tuple(images.shape[1:]) != wanted:
        raise ValueError(f"the images are {tuple(images.shape[1:])}, the model draws {wanted}; give its own, or --image-size.")


def _velocity(pipe: Any, labels: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        time = torch.full((AT_A_TIME,), pipe.scheduler.config.num_train_timesteps * (1 - t))
        parts = zip(x.split(AT_A_TIME), labels.split(AT_A_TIME), strict=True)
        return -torch.cat([pipe.transformer(part, time[: len(part)], class_labels=own).sample for part, own in parts])

    return velocity


def _report(settings: TheorySettings, count: int, result: TheoryResult) -> dict[str, Any]:
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
    codings = {
        coding: [{name: value if value == value else None for name, value in asdict(row).items()} for row in rows]
        for coding, rows in result.found.items()
    }
    return {
        "version": __version__,
        "settings": chosen,
        "training_images": count,
        "codings": codings,
        "paths": asdict(result.paths),
        "notes": result.notes,
    }
