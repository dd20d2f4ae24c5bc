"""What can be measured with the files that are there, decided before any work; and what is missing for the rest."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..features.choice import MOST_PIXELS, feature_space
from ..features.clip_score import CHECKPOINT as CLIP
from ..features.clip_score import ClipScore
from ..features.dinov2 import CHECKPOINT as DINOV2
from ..features.dinov2 import dinov2_space
from ..features.feature_space import FeatureSpace
from ..features.inception import NEIGHBORS, SPLITS, Inception
from ..images.image_sets import ImageSet
from ..memorization.neighbors import distinct_images
from ..user_functions import load_function
from .reference_set import ReferenceSet

SPACE = {  # in which each metric of features is taken
    "fid": "inception", "kid": "inception", "is": "inception", "precision-recall": "inception",
    "fd-dinov2": "dinov2", "fd": "features",
}  # fmt: skip
METRICS = (*SPACE, "clip-score", "score", "f-mem", "kpe")
FRECHET = ("fid", "fd-dinov2", "fd")  # for these, mean and covariance of the reference are enough
FEWEST = {  # images of each kind; a split of the Inception Score that has one image scores 1, whatever it is
    "fid": 2, "fd-dinov2": 2, "fd": NEIGHBORS + 1, "precision-recall": NEIGHBORS + 1, "is": 2 * SPLITS,
}  # fmt: skip
ENERGY, PER_DIM, EXCESS = "path_energy_total", "per_dim", "excess"


@dataclass(frozen=True)
class Inputs:
    """What was given: images, and, where there are any, reference and training images."""

    samples: ImageSet
    reference: ReferenceSet | None
    training: torch.Tensor | None
    kid_subset_size: int

    @cached_property
    def distinct(self) -> torch.Tensor:
        """(m,) indices of the training images that are no copies."""
        return distinct_images(torch.empty(0) if self.training is None else self.training)

    def column(self, name: str) -> np.ndarray:
        """(n,) float64 from the metadata of the samples, NaN where it has none."""
        return np.array([row.get(name, np.nan) for row in self.samples.rows] or [np.nan] * len(self.samples), float)

    @cached_property
    def prompts(self) -> list[str]:
        """One for each sample, empty where there is none: its prompt, else "a photo of a" and the name of its class."""
        return [
            row.get("prompt") or (f"a photo of a {row['class_name']}" if row.get("class_name") else "")
            for row in self.samples.rows
        ]


@dataclass
class Plan:
    """What will be measured.

    Attributes:
        metrics (`list[str]`): of `METRICS`.
        spaces (`dict[str, FeatureSpace]`): "inception", "dinov2" and "features", as far as they are needed.
        compared (`set[str]`): spaces in which the images of the reference are measured, too.
        clip (`ClipScore`, *optional*): where it is asked for.
        scorer (`tuple`, *optional*): name and function of the user's judge.
        left_out (`dict[str, str]`): metrics, and what is missing for them.
    """

    metrics: list[str] = field(default_factory=list)
    spaces: dict[str, FeatureSpace] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
    clip: ClipScore | None = None
    scorer: tuple[str, Callable[..., torch.Tensor]] | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What is left out, and why, those with one reason together."""
        reasons: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            reasons.setdefault(why, []).append(name)
        return [f"{', '.join(names)} cannot be measured: {why}" for why, names in reasons.items()]


def make_plan(inputs: Inputs, metrics: Sequence[str], choices: Mapping[str, str | None], device: torch.device) -> Plan:
    """
    Args:
        inputs (`Inputs`): what was given.
        metrics (`Sequence[str]`): of `METRICS`; or "auto" alone, all that can be measured without a download.
        choices (`Mapping`): "inception", "dinov2", "features", "clip", "scorer": which file, checkpoint, space or
            function; None for the usual.
        device (`torch.device`): where networks run.

    Raises:
        ValueError: unknown metrics, nothing that can be measured, or a metric, file or checkpoint that was named and is of no
            use.
    """
    auto = list(metrics) == ["auto"]
    wanted = list(METRICS) if auto else list(dict.fromkeys(metrics))
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ValueError(f"metrics holds {unknown[0]!r}; choose auto alone, or from {', '.join(METRICS)}.")
    plan = Plan()
    for name in wanted:
        if auto and name == "fd" and choices["features"] is None and "fid" in plan.metrics:
            continue  # FID says more than a distance of pixels
        if auto and name == "score" and choices["scorer"] is None:
            continue
        try:
            _check(name, inputs)
        except ValueError as error:
            plan.left_out[name] = str(error)
            continue
        kind = SPACE.get(name, {"clip-score": "clip", "score": "scorer"}.get(name, ""))
        try:
            if kind == "clip":
                plan.clip = ClipScore(choices[kind] or CLIP, device, download=not auto or choices[kind] is not None)
            elif kind == "scorer":
                if (scorer := choices[kind]) is None:
                    raise ValueError("there is no judge; give --scorer module:function.")
                plan.scorer = scorer, load_function(scorer, kind)
            elif kind and kind not in plan.spaces:
                plan.spaces[kind] = _space(kind, choices[kind], inputs, device, download=not auto)
        except ValueError as error:
            if choices[kind] is not None:
                raise
            plan.left_out[name] = str(error)
            continue
        plan.metrics.append(name)
        if name in SPACE and name != "is" and inputs.reference is not None and _compares_images(name, inputs.reference):
            plan.compared.add(kind)
    if plan.left_out and (not auto or not plan.metrics):
        raise ValueError(" ".join(plan.sentences()))
    if auto and inputs.reference is not None and not any(name in SPACE and name != "is" for name in plan.metrics):
        raise ValueError(f"nothing can be measured against {inputs.reference.path}. {' '.join(plan.sentences())}")
    return plan


def _compares_images(name: str, reference: ReferenceSet) -> bool:
    """Whether statistics of the reference are not there, or not enough."""
    return name not in FRECHET or SPACE[name] not in reference.statistics


def _check(name: str, inputs: Inputs) -> None:
    """Raises ValueError if the images given are not enough for a metric."""
    samples, reference = inputs.samples, inputs.reference
    counts = {f"images in {samples.path}": len(samples)}
    if name in SPACE and name != "is":
        if reference is None:
            raise ValueError("there is nothing to compare with; give --reference.")
        if _compares_images(name, reference):
            if reference.images is None:
                raise ValueError(
                    f"{reference.path} holds statistics of {', '.join(reference.statistics)} features alone; give the images."
                )
            counts[f"reference images in {reference.path}"] = len(reference.images)
    for what, count in counts.items():
        if count < (fewest := FEWEST.get(name, 1)):
            raise ValueError(f"there are {count} {what}; it takes at least {fewest}.")
        if name == "kid" and count < inputs.kid_subset_size:
            raise ValueError(
                f"there are {count} {what}, fewer than the {inputs.kid_subset_size} of a subset; give --kid-subset-size "
                f"{max(2, count)} or less, and say so next to the number."
            )
    if name == "clip-score" and not any(inputs.prompts):
        raise ValueError(f"{samples.path} has no prompts; give a folder whose metadata.jsonl has file_name and prompt.")
    if name == "clip-score" and not all(inputs.prompts):
        empty = [sample for sample, prompt in zip(samples.names, inputs.prompts, strict=True) if not prompt]
        raise ValueError(f"{len(empty)} of {len(samples)} images have no prompt, such as {empty[0]}; fill them in.")
    if name == "f-mem":
        if inputs.training is None:
            raise ValueError("there is nothing to be repeated; give --training-images.")
        if (count := len(inputs.distinct)) < 2:
            raise ValueError(f"of {len(inputs.training)} training images {count} are distinct; d1 / d2 needs at least two.")
    if name == "kpe" and not np.isfinite(inputs.column(PER_DIM)).any():
        raise ValueError(f"{samples.path} has no energies; give a folder that kts generate wrote.")


def _space(space: str, choice: str | None, inputs: Inputs, device: torch.device, download: bool) -> FeatureSpace:
    """The network of a space, and whether it suits images and reference.

    Raises:
        ValueError: it is not there, or does not suit them.
    """
    if space == "inception":
        found = Inception(None if choice is None else Path(choice), device).space(logits=True)
    elif space == "dinov2":
        found = dinov2_space(choice or DINOV2, device, download=download or choice is not None)
    else:
        pixels = math.prod(inputs.samples.shape)
        if choice in (None, "pixels") and pixels > MOST_PIXELS:
            raise ValueError(
                f"an image is {pixels} numbers, too many for a covariance (at most {MOST_PIXELS}); scale images with "
                "--image-size, or give a network with --features."
            )
        found = feature_space(choice or "pixels", device)
    if inputs.reference is not None:
        _suits(space, found, inputs.samples, inputs.reference)
    return found


def _suits(space: str, found: FeatureSpace, samples: ImageSet, reference: ReferenceSet) -> None:
    width = None
    if space in reference.statistics:
        statistics, said = reference.statistics[space]
        for theirs, ours in ((said.extractor, found.name), (said.sha256, found.sha256)):
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"the statistics in {reference.path} were taken with {theirs}, not {ours}; use the same network, or give "
                    "the images."
                )
        width = len(statistics.mean)
    elif space == "features" and reference.images is not None:
        width = found(torch.zeros(2, *reference.images.shape)).shape[1]
    if space == "features" and width != (own := found(torch.zeros(2, *samples.shape)).shape[1]):
        raise ValueError(
            f"images have {own} features in {found.name}, the reference {width}; give images of the same size and color, or "
            "--image-size."
        )
