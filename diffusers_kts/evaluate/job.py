"""``kts evaluate``: how good images are that were drawn, whether they repeat training images, and what their energies tell.

    found = evaluate("out", "real", metrics=["fid", "clip-score", "kpe"], clip="openai/clip-vit-base-patch32")
    found.metrics["fid"].value, found.correlations["clip_score"].rho

Every number comes with what it depends on, see `Measured`.
"""

import json
import platform
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from .. import __version__
from ..features.inception import PUBLISHED
from ..files import written_together
from ..generate.assemble import check_finished
from ..images.image_sets import KEPT, open_images
from ..images.training_images import load_images
from ..sampling.devices import usable_device
from .correlation import Correlation, rank_correlation
from .measures import Measured, Seen, look_at_reference, look_at_samples, measure
from .plan import ENERGY, EXCESS, FRECHET, Inputs, Plan, make_plan
from .reference_set import ReferenceSet, save_statistics
from .settings import EvaluateSettings

REPORT, SAMPLES = "evaluation.json", "samples.parquet"
GROUPS = ("low", "middle", "high")  # thirds of the path energy
SCORES = ("clip_score", "clip_margin", "score", "support_knn", "support_kde")
PACKAGES = ("torch", "torch-fidelity", "transformers", "pillow")


@dataclass
class Evaluation:
    """What was found.

    Attributes:
        metrics (`dict[str, Measured]`): "clip-score" also gives "clip-margin" where prompts differ, "precision-recall" gives
            "precision" and "recall", "fd" also "fd-precision" and "fd-recall".
        correlations (`dict[str, Correlation]`): Spearman's, of path energy with each score of a sample.
        excess_correlations (`dict[str, Correlation]`): likewise, of `KPETrace.excess`, where it is known.
        samples (`dict[str, list]`): a row per sample: name, what it was asked to be, energies, scores.
        notes (`list[str]`): what was left out and why, and other remarks.
        report (`dict`): all of it but the samples, as in ``evaluation.json``.
        files (`list[Path]`): what was written.
    """

    metrics: dict[str, Measured]
    correlations: dict[str, Correlation]
    excess_correlations: dict[str, Correlation]
    samples: dict[str, list[Any]]
    notes: list[str]
    report: dict[str, Any]
    files: list[Path]


def evaluate(
    images: Path | str, reference: Path | str | None = None, *, show_progress: bool = True, **settings: Any
) -> Evaluation:
    """Measure images.

    Args:
        images: as `open_images`; prompts and energies come from ``metadata.jsonl``, shards or Parquet files.
        reference (*optional*): as `ReferenceSet.open`.
        show_progress: whether a bar is shown.
        settings: the other fields of `EvaluateSettings`. Nothing is written without ``output`` and ``statistics``, and what
            is measured is never written to. What is named as ``inception``, ``dinov2`` or ``clip``, or by its metric, may be
            downloaded.

    Raises:
        ValueError: bad settings, unreadable or too few images, or something is missing for a metric that was asked for.
        OSError: ``output`` cannot be written to, or holds an evaluation.
    """
    return run_evaluate(EvaluateSettings.load(images=images, reference=reference, **settings), show_progress)


def run_evaluate(s: EvaluateSettings, show_progress: bool = True) -> Evaluation:
    """As `evaluate`, with all settings in one value."""
    files = _files(s)
    where = usable_device(s.device)
    samples = open_images(s.images, s.image_size)
    training = None
    if s.training_images is not None:
        training = load_images(s.training_images, samples.shape, resize=s.image_size is not None)
    real = None if s.reference is None else ReferenceSet.open(s.reference, s.image_size)
    inputs = Inputs(samples, real, training, s.kid_subset_size)
    choices = {"inception": s.inception, "dinov2": s.dinov2, "features": s.features, "clip": s.clip, "scorer": s.scorer}
    wanted = s.metrics.split(",") if isinstance(s.metrics, str) else s.metrics
    plan = make_plan(inputs, wanted, {name: None if c is None else str(c) for name, c in choices.items()}, where)
    if s.statistics is not None and not plan.compared:
        raise ValueError("there are no statistics to save; give the images of a --reference, and a metric that needs them.")
    if not s.overwrite and (there := [file for file in files if file.exists()]):
        raise FileExistsError(f"{there[0]} exists; add --overwrite, or give another file or folder.")

    # begun before the work, so that a folder that cannot be written to is known by then
    with nullcontext() if s.output is None else written_together(s.output, [REPORT, SAMPLES]) as partial:
        total = len(samples) + (len(real.images) if real is not None and real.images is not None and plan.compared else 0)
        with tqdm(total=total, unit="image", disable=not show_progress) as bar:
            known = look_at_reference(inputs, plan, s.batch_size, bar.update)
            seen = look_at_samples(inputs, plan, where, s.batch_size, bar.update)
        found, rows = measure(inputs, plan, seen, known), _rows(inputs, seen)
        correlations = {column: _correlations(inputs.column(column), rows) for column in (ENERGY, EXCESS)}
        notes = plan.sentences() + _notes(inputs, plan, found, seen)
        report = {
            "images": {"path": str(s.images), "n": len(samples), "shape": list(samples.shape), "resize": samples.resize},
            "reference": None if s.reference is None else str(s.reference),
            "training_images": None if s.training_images is None else str(s.training_images),
            "metrics": {name: asdict(number) for name, number in found.items()},
            "correlations": {
                f"{column} with {name}": asdict(number) for column, of in correlations.items() for name, number in of.items()
            },
            "by_energy_group": _by_group(rows),
            "notes": notes,
            "device": str(where),
            "versions": {"diffusers-kts": __version__, "python": platform.python_version()} | _versions(),
        }
        if partial is not None:
            pq.write_table(pa.table(rows), partial / SAMPLES)
            (partial / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    if s.statistics is not None:
        save_statistics(s.statistics, {name: known.statistics[name] for name in plan.compared})
    return Evaluation(found, correlations[ENERGY], correlations[EXCESS], rows, notes, report, files)


def _files(s: EvaluateSettings) -> list[Path]:
    """What will be written.

    Raises:
        ValueError: a file or folder is to be measured and to be written. OSError: the output is a file.
    """
    if s.output is not None and s.output.exists() and not s.output.is_dir():
        raise NotADirectoryError(f"{s.output} is a file; give a folder with --output.")
    if s.statistics is not None and s.statistics.suffix != ".npz":
        raise ValueError(f"statistics is {str(s.statistics)!r}; give a file that ends in .npz.")
    files = [] if s.output is None else [s.output / REPORT, s.output / SAMPLES]
    files += [] if s.statistics is None else [s.statistics]
    if s.training_images is not None and s.training_images.resolve() == s.images.resolve():
        raise ValueError(f"{s.images} is given as samples and as training images; give those the model was trained on.")
    read = [given.resolve() for given in (s.images, s.reference, s.training_images) if given is not None]
    for file in files:
        if file.resolve() in read:
            raise ValueError(f"{file} is to be measured and to be written; give another file or folder to write.")
    for folder in read:
        check_finished(folder)
    return files


def _rows(inputs: Inputs, seen: Seen) -> dict[str, list[Any]]:
    """A column each: names, what is known from metadata, and scores."""
    rows = inputs.samples.rows
    columns: dict[str, list[Any]] = {"name": inputs.samples.names}
    columns |= {name: [row.get(name) for row in rows] for name in KEPT if any(name in row for row in rows)}
    if seen.clip_score is not None:
        columns["clip_score"] = seen.clip_score.tolist()
    if seen.clip_margin is not None:
        columns["clip_margin"] = seen.clip_margin.tolist()
    if seen.score is not None:
        columns["score"] = seen.score.tolist()
    if (memory := seen.memorization) is not None:
        for k in (0, 1):
            columns[f"d{k + 1}"] = memory.distances[:, k].tolist()
            columns[f"training_image_{k + 1}"] = memory.indices[:, k].tolist()
        columns["memorized"] = memory.is_memorized.tolist()
    columns |= {name: values.tolist() for name, values in seen.support.items()}
    if ENERGY in columns:
        columns["energy_group"] = _groups(inputs.column(ENERGY))
    return columns


def _groups(energies: np.ndarray) -> list[str | None]:
    """Which third of the path energies each is in; None where it is unknown."""
    known = np.isfinite(energies)
    places = np.full(len(energies), -1)
    places[known] = energies[known].argsort(kind="stable").argsort() * len(GROUPS) // max(1, known.sum())
    return [None if place < 0 else GROUPS[place] for place in places]


def _by_group(columns: dict[str, list[Any]]) -> dict[str, dict[str, float]]:
    """Mean of every score of a sample in each third of the path energies."""
    found: dict[str, dict[str, float]] = {}
    for name in (*SCORES, "memorized"):
        for group in GROUPS if name in columns and "energy_group" in columns else ():
            own = [v for v, g in zip(columns[name], columns["energy_group"], strict=True) if g == group and np.isfinite(v)]
            if own:
                found.setdefault(name, {})[group] = float(np.mean(own))
    return found


def _correlations(energies: np.ndarray, columns: dict[str, list[Any]]) -> dict[str, Correlation]:
    scores: dict[str, np.ndarray] = {n: np.array(columns[n]) for n in SCORES if n in columns}
    if "d1" in columns:
        scores["d1"] = np.array(columns["d1"])
        with np.errstate(divide="ignore", invalid="ignore"):  # a sample that equals two training images is left out
            scores["d1/d2"] = scores["d1"] / np.array(columns["d2"])
    found = {name: rank_correlation(energies, values) for name, values in scores.items()}
    return {name: correlation for name, correlation in found.items() if correlation is not None}


def _notes(inputs: Inputs, plan: Plan, found: dict[str, Measured], seen: Seen) -> list[str]:
    notes = []
    if seen.memorization is not None and (same := int((seen.memorization.distances[:, 0] == 0).sum())):
        notes.append(f"{same} of {len(inputs.samples)} samples equal a training image in every pixel; are they drawn?")
    for name in FRECHET:
        if name in found and found[name].n <= (d := found[name].details["features"]):
            notes.append(
                f"{name}: {found[name].n} samples for {d} features; biased upwards, it compares with as many samples only."
            )
    if (inception := plan.spaces.get("inception")) is not None and not str(inception.sha256).startswith(PUBLISHED):
        notes.append("Inception's weights are not the published ones; its numbers do not compare with those of others.")
    reference = inputs.reference
    statistics = {} if reference is None else reference.statistics
    if reference is not None and any(name in plan.spaces and not said.extractor for name, (_, said) in statistics.items()):
        notes.append(f"{reference.path} does not say which network and resize its statistics are of.")
    if inputs.training is not None and (copies := len(inputs.training) - len(inputs.distinct)):
        notes.append(f"{copies} training images are copies of others and were left out, so that d2 is to another image.")
    if "clip-score" in found and not any("prompt" in row for row in inputs.samples.rows):
        notes.append('clip-score: the text is "a photo of a" and the name of the class.')
    return notes


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
