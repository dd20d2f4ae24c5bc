"""The numbers of an evaluation, each with what it depends on, from one pass over every set of images."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import brief
from ..features import inception as fidelity
from ..features.clip_score import clip_scores
from ..features.frechet import FeatureStatistics, frechet_distance, precision_recall
from ..memorization.fraction import THRESHOLD, Memorization, bootstrap_interval
from ..memorization.neighbors import nearest_neighbors
from .plan import ENERGY, EXCESS, FRECHET, PER_DIM, SPACE, Inputs, Plan
from .reference_set import Provenance
from .support import NEIGHBOR, Support

QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9}
Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Measured:
    """One number, and all that it depends on.

    Attributes:
        value (`float`): the number. unit (`str`): what it is.
        n (`int`): of how many samples.
        low, high (`float`, *optional*): 95 % interval.
        deviation (`float`, *optional*): standard deviation, over KID's subsets or the splits of the Inception Score.
        extractor, sha256, resize (`str`, *optional*): the network, the hash of its weights, and what it does to the size of
            images.
        reference (`dict`, *optional*): what samples were held against: images or statistics, and how many.
        details (`dict`): settings of this metric, and what else belongs to it.
    """

    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    deviation: float | None = None
    extractor: str | None = None
    sha256: str | None = None
    resize: str | None = None
    reference: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Real:
    """What is known of the reference, by space: features (n, d) of its images; and statistics, of these or from its file."""

    features: dict[str, torch.Tensor]
    statistics: dict[str, tuple[FeatureStatistics, Provenance]]


@dataclass
class Seen:
    """What is known of the samples: features (n, d) by space, and, where asked for, CLIP scores, their margins and scores of
    the user's judge, each (n,), neighbors, and the support among the training images, by the name of its column."""

    features: dict[str, torch.Tensor]
    clip_score: torch.Tensor | None = None
    clip_margin: torch.Tensor | None = None
    score: torch.Tensor | None = None
    memorization: Memorization | None = None
    support: dict[str, torch.Tensor] = field(default_factory=dict)


def look_at_reference(inputs: Inputs, plan: Plan, batch_size: int, advance: Advance) -> Real:
    """One pass over the images of the reference, if their features are needed.

    Raises:
        ValueError: an image cannot be read.
    """
    if inputs.reference is None:
        return Real({}, {})
    images, statistics = inputs.reference.images, dict(inputs.reference.statistics)
    if images is None or not plan.compared:
        return Real({}, statistics)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in plan.compared}
    for batch in images.batches(batch_size):
        for name, part in parts.items():
            part.append(plan.spaces[name](batch.float() / 255))
        advance(len(batch))
    features_of = {name: torch.cat(found) for name, found in parts.items()}
    for name, features in features_of.items():
        if name not in statistics:
            space = plan.spaces[name]
            said = Provenance(space.name, space.sha256, len(images), images.resize)
            statistics[name] = (_statistics(name, features), said)
    return Real(features_of, statistics)


def look_at_samples(inputs: Inputs, plan: Plan, device: torch.device, batch_size: int, advance: Advance) -> Seen:
    """One pass over the samples, for everything that is planned.

    Raises:
        ValueError: an image cannot be read.
    """
    training = inputs.training[inputs.distinct].to(device) if inputs.training is not None and "f-mem" in plan.metrics else None
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in plan.spaces}
    support = Support(training) if training is not None and len(training) > NEIGHBOR else None
    prompts, texts = iter(inputs.prompts), list(dict.fromkeys(inputs.prompts))
    number = {text: i for i, text in enumerate(texts)}
    read = None if plan.clip is None else plan.clip.read(texts)
    clip, scores, distances, indices, kernels = [], [], [], [], []
    for batch in inputs.samples.batches(batch_size):
        images = batch.float() / 255
        for name, space in plan.spaces.items():
            parts[name].append(space(images))
        asked = list(islice(prompts, len(images)))
        if plan.clip is not None and read is not None:
            clip.append(clip_scores(plan.clip.see(images), read, torch.tensor([number[text] for text in asked])))
        if plan.scorer is not None:
            scores.append(_judged(*plan.scorer, images.to(device), asked))
        if training is not None:
            near = nearest_neighbors(images.to(device), training, k=2 if support is None else NEIGHBOR)
            distances.append(near[0].cpu())
            indices.append(inputs.distinct[near[1].cpu()])
            if support is not None:
                kernels.append(support.kde(images.to(device)).cpu())
        advance(len(batch))
    seen = Seen({name: torch.cat(found) for name, found in parts.items()})
    if clip:
        seen.clip_score, margins = (torch.cat(parts) for parts in zip(*clip, strict=True))
        seen.clip_margin = margins if len(texts) > 1 else None
    if scores:
        seen.score = torch.cat(scores)
    if inputs.training is not None and training is not None:
        count, apart, which = len(inputs.training), torch.cat(distances), torch.cat(indices)
        seen.memorization = Memorization(apart[:, :2], which[:, :2], "pixels", THRESHOLD, count, len(training))
        if support is not None:
            seen.support = {"support_knn": support.knn(apart), "support_kde": torch.cat(kernels)}
    return seen


def measure(inputs: Inputs, plan: Plan, seen: Seen, real: Real) -> dict[str, Measured]:
    """All numbers that are planned; "clip-score" and "precision-recall" give two, "fd" three."""
    found: dict[str, Measured] = {}
    for name in plan.metrics:
        if name in SPACE:
            found |= _of_features(name, inputs, plan, seen, real)
        elif name == "clip-score":
            found |= _clip_score(plan, seen)
        elif name == "score":
            found[name] = _score(plan, seen)
        elif name == "f-mem":
            found[name] = _f_mem(seen)
        else:
            found[name] = _energy(inputs)
    return found


def _statistics(name: str, features: torch.Tensor) -> FeatureStatistics:
    """In Inception's space as torch-fidelity computes them."""
    return fidelity.statistics(fidelity.split(features)[0]) if name == "inception" else FeatureStatistics.of(features)


def _of_features(name: str, inputs: Inputs, plan: Plan, seen: Seen, real: Real) -> dict[str, Measured]:
    key = SPACE[name]
    space, ours, theirs = plan.spaces[key], seen.features[key], real.features.get(key)
    measured = partial(Measured, n=len(ours), extractor=space.name, sha256=space.sha256, resize=space.resize)
    if name == "is":
        value, deviation = fidelity.inception_score(fidelity.split(ours)[1])
        return {name: measured(value, "score, higher is better", deviation=deviation, details={"splits": fidelity.SPLITS})}
    assert inputs.reference is not None, "the plan has none of the rest without it"
    found, path, images = {}, str(inputs.reference.path), inputs.reference.images
    if name in FRECHET:
        statistics, said = real.statistics[key]
        value = (fidelity.fid if name == "fid" else frechet_distance)(_statistics(key, ours), statistics)
        details = {"features": len(statistics.mean)}
        found[name] = measured(value, "squared feature units", reference={"path": path} | asdict(said), details=details)
        if name != "fd" or theirs is None:
            return found
    assert theirs is not None and images is not None, "the plan has none of the rest without them"
    measured = partial(measured, reference={"path": path, "n": len(images), "resize": images.resize})
    if name == "kid":
        value, deviation = fidelity.kid(fidelity.split(ours)[0], fidelity.split(theirs)[0], inputs.kid_subset_size)
        details = {"subsets": fidelity.SUBSETS, "subset_size": inputs.kid_subset_size}
        return {name: measured(value, "squared kernel distance", deviation=deviation, details=details)}
    if name == "fd":
        shares, prefix = precision_recall(ours, theirs), "fd-"
    else:
        shares, prefix = fidelity.precision_recall(fidelity.split(ours)[0], fidelity.split(theirs)[0]), ""
    for what, value in (("precision", shares.precision), ("recall", shares.recall)):
        found[prefix + what] = measured(value, "share", details={"neighbors": shares.k})
    return found


def _clip_score(plan: Plan, seen: Seen) -> dict[str, Measured]:
    assert plan.clip is not None
    measured = partial(Measured, extractor=plan.clip.name, sha256=plan.clip.sha256, resize=plan.clip.resize)
    units = {"clip-score": "100 cos, higher is better", "clip-margin": "100 cos, less that of the nearest other prompt"}
    columns = dict(zip(units, (seen.clip_score, seen.clip_margin), strict=True))
    return {
        name: measured(float(column.double().mean()), units[name], len(column), *bootstrap_interval(column))
        for name, column in columns.items()
        if column is not None
    }


def _judged(name: str, scorer: Callable[..., Any], images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    try:
        scores = torch.as_tensor(scorer(images, prompts)).detach().cpu().double()
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"scorer {name!r} failed on {len(images)} images: {brief(error)}") from error
    if scores.shape != (len(images),) or not scores.isfinite().all():
        raise ValueError(
            f"scorer {name!r} gave {tuple(scores.shape)} for {len(images)} images, or numbers that are not finite; return one "
            "finite number for each."
        )
    return scores


def _score(plan: Plan, seen: Seen) -> Measured:
    assert seen.score is not None and plan.scorer is not None
    low, high = bootstrap_interval(seen.score)
    return Measured(float(seen.score.mean()), "mean score", len(seen.score), low, high, extractor=plan.scorer[0])


def _f_mem(seen: Seen) -> Measured:
    memory = seen.memorization
    assert memory is not None
    found, reference = memory.f_mem, {"n": memory.num_training}
    details = {"count": found.count, "threshold": memory.threshold, "distinct_training_images": memory.num_distinct}
    measured = partial(Measured, extractor=memory.space, reference=reference, details=details)
    return measured(found.fraction, "share with d1/d2 below the threshold", found.n, found.low, found.high)


def _energy(inputs: Inputs) -> Measured:
    """Of the samples whose energy is known and finite."""
    known = {name: inputs.column(name) for name in (PER_DIM, ENERGY, "path_energy_early", "path_energy_late", EXCESS)}
    known = {name: values[np.isfinite(values)] for name, values in known.items()}
    details = {name: {key: float(np.quantile(v, q)) for key, q in QUANTILES.items()} for name, v in known.items() if len(v)}
    values = known[PER_DIM]
    low, high = bootstrap_interval(torch.from_numpy(values))
    return Measured(float(values.mean()), "path energy per dimension", len(values), low, high, details=details)
