"""``kts evaluate``: how good images are that were drawn, whether they repeat training images, and what their energies tell.

    found = evaluate("out", "real", metrics=["fid", "clip-score", "kpe"], clip="openai/clip-vit-base-patch32")
    found.metrics["fid"].value, found.correlations["clip_score"].rho

Every number comes with what it depends on, see `Measured`.
"""

import json
import platform
from collections.abc import Sequence
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
from .plan import ENERGY, FRECHET, Inputs, Plan, make_plan
from .reference_set import ReferenceSet, save_statistics

REPORT, SAMPLES = "evaluation.json", "samples.parquet"
PACKAGES = ("torch", "torch-fidelity", "transformers", "pillow")


@dataclass
class Evaluation:
    """What was found.

    Attributes:
        metrics (`dict[str, Measured]`): "precision-recall" gives "precision" and "recall", "fd" also "fd-precision" and
            "fd-recall".
        correlations (`dict[str, Correlation]`): Spearman's, of path energy with each score of a sample.
        samples (`dict[str, list]`): a row per sample: name, what it was asked to be, energies, scores.
        notes (`list[str]`): what was left out and why, and other remarks.
        report (`dict`): all of it but the samples, as in ``evaluation.json``.
        files (`list[Path]`): what was written.
    """

    metrics: dict[str, Measured]
    correlations: dict[str, Correlation]
    samples: dict[str, list[Any]]
    notes: list[str]
    report: dict[str, Any]
    files: list[Path]


def evaluate(
    images: Path | str,
    reference: Path | str | None = None,
    *,
    training_images: Path | str | None = None,
    metrics: Sequence[str] | str = "auto",
    inception: Path | str | None = None,
    dinov2: str | None = None,
    clip: str | None = None,
    features: str | None = None,
    image_size: int | None = None,
    kid_subset_size: int = 1000,
    statistics: Path | str | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = 64,
    show_progress: bool = True,
) -> Evaluation:
    """Measure images.

    Args:
        images: as `open_images`; prompts and energies come from ``metadata.jsonl``, shards or Parquet files.
        reference (*optional*): as `ReferenceSet.open`.
        training_images (*optional*): for F_mem, as `load_images`.
        metrics: of `METRICS`, in a list or with commas; "auto" alone is all that can be measured without a download.
        inception (*optional*): torch-fidelity's weight file, by default in torch's hub cache.
        dinov2, clip (*optional*): folder or Hub id. What is named here, or by its metric, may be downloaded.
        features (*optional*): the space of "fd", as `feature_space`; "pixels" by default.
        image_size (*optional*): side of the square to which all images are cropped and scaled first.
        kid_subset_size: images in each of KID's subsets.
        statistics (*optional*): ``.npz`` to write the statistics of the reference's features to.
        output (*optional*): folder for ``evaluation.json`` and ``samples.parquet``; nothing is written without it.
        overwrite: whether these files may replace those of an earlier evaluation. What is measured is never written to.
        device: "auto" is a GPU where there is one.
        batch_size: images at a time.

    Raises:
        ValueError: bad settings, unreadable or too few images, or a metric that was asked for lacks something: what, and where
            to put it. OSError: ``output`` cannot be written to, or holds an evaluation.
    """
    numbers = (("image_size", image_size, 1), ("kid_subset_size", kid_subset_size, 2), ("batch_size", batch_size, 1))
    for name, number, least in numbers:
        if number is not None and number < least:
            raise ValueError(f"{name} is {number}; give at least {least}.")
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise NotADirectoryError(f"{output} is a file; give a folder with --output.")
    if statistics is not None and Path(statistics).suffix != ".npz":
        raise ValueError(f"statistics is {str(statistics)!r}; give a file that ends in .npz.")
    files = [] if output is None else [Path(output) / REPORT, Path(output) / SAMPLES]
    files += [] if statistics is None else [Path(statistics)]
    read = [Path(given).resolve() for given in (images, reference, training_images) if given is not None]
    for file in files:
        if file.resolve() in read:
            raise ValueError(f"{file} is to be measured and to be written; give another file to write.")
    for folder in read:
        check_finished(folder)
    where = usable_device(device)
    samples = open_images(Path(images), image_size)
    training = None
    if training_images is not None:
        training = load_images(Path(training_images), samples.shape, resize=image_size is not None)
    real = None if reference is None else ReferenceSet.open(Path(reference), image_size)
    inputs = Inputs(samples, real, training, kid_subset_size)
    choices = {"inception": inception, "dinov2": dinov2, "features": features, "clip": clip}
    wanted = metrics.split(",") if isinstance(metrics, str) else metrics
    plan = make_plan(inputs, wanted, {name: None if c is None else str(c) for name, c in choices.items()}, where)
    if statistics is not None and not plan.compared:
        raise ValueError("there are no statistics to save; give the images of a --reference, and a metric that needs them.")
    if not overwrite and (there := [file for file in files if file.exists()]):
        raise FileExistsError(f"{there[0]} exists; add --overwrite, or give another file or folder.")

    # begun before the work, so that a folder that cannot be written to is known by then
    with nullcontext() if output is None else written_together(Path(output), [REPORT, SAMPLES]) as partial:
        total = len(samples) + (len(real.images) if real is not None and real.images is not None and plan.compared else 0)
        with tqdm(total=total, unit="image", disable=not show_progress) as bar:
            known = look_at_reference(inputs, plan, batch_size, bar.update)
            seen = look_at_samples(inputs, plan, where, batch_size, bar.update)
        found, rows = measure(inputs, plan, seen, known), _rows(inputs, seen)
        correlations = _correlations(inputs, rows)
        notes = plan.sentences() + _notes(inputs, plan, found)
        report = {
            "images": {"path": str(images), "n": len(samples), "shape": list(samples.shape), "resize": samples.resize},
            "reference": None if reference is None else str(reference),
            "training_images": None if training_images is None else str(training_images),
            "metrics": {name: asdict(number) for name, number in found.items()},
            "correlations": {f"{ENERGY} with {name}": asdict(number) for name, number in correlations.items()},
            "notes": notes,
            "device": str(where),
            "versions": {"diffusers-kts": __version__, "python": platform.python_version()} | _versions(),
        }
        if partial is not None:
            pq.write_table(pa.table(rows), partial / SAMPLES)
            (partial / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    if statistics is not None:
        save_statistics(Path(statistics), {name: known.statistics[name] for name in plan.compared})
    return Evaluation(found, correlations, rows, notes, report, files)


def _rows(inputs: Inputs, seen: Seen) -> dict[str, list[Any]]:
    """A column each: names, what is known from metadata, and scores."""
    rows = inputs.samples.rows
    columns: dict[str, list[Any]] = {"name": inputs.samples.names}
    columns |= {name: [row.get(name) for row in rows] for name in KEPT if any(name in row for row in rows)}
    if seen.clip_score is not None:
        columns["clip_score"] = seen.clip_score.tolist()
    if (memory := seen.memorization) is not None:
        for k in (0, 1):
            columns[f"d{k + 1}"] = memory.distances[:, k].tolist()
            columns[f"training_image_{k + 1}"] = memory.indices[:, k].tolist()
        columns["memorized"] = memory.is_memorized.tolist()
    return columns


def _correlations(inputs: Inputs, columns: dict[str, list[Any]]) -> dict[str, Correlation]:
    scores: dict[str, np.ndarray] = {}
    if "clip_score" in columns:
        scores["clip_score"] = np.array(columns["clip_score"])
    if "d1" in columns:
        scores["d1"] = np.array(columns["d1"])
        with np.errstate(divide="ignore", invalid="ignore"):  # a sample that equals two training images is left out
            scores["d1/d2"] = scores["d1"] / np.array(columns["d2"])
    found = {name: rank_correlation(inputs.column(ENERGY), values) for name, values in scores.items()}
    return {name: correlation for name, correlation in found.items() if correlation is not None}


def _notes(inputs: Inputs, plan: Plan, found: dict[str, Measured]) -> list[str]:
    notes = []
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
