"""``kts audit``: how much of its training set a model gives back, whether KTS changes that, and what its controls say."""

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tqdm import tqdm

from .. import __version__
from ..errors import brief
from ..features.choice import feature_space
from ..features.feature_space import FeatureSpace
from ..files import parse_json, written_together
from ..images.training_images import load_images
from ..kpe.trace import KPETrace
from ..memorization.detector import MemorizationDetector
from ..sampling.devices import usable_device
from ..sampling.find import find_images, find_model, fingerprint, num_classes
from ..sampling.prompts import Prompt, prompts_hash, read_prompts
from ..sampling.sampler import Sampler
from ..seeding import sample_seed
from .measures import Findings, Yardsticks, measure
from .report import write_report
from .sampling import DRAWN, SAMPLERS, AuditSampler, Batch
from .settings import AuditSettings
from .verdict import verdict

FILES = ("report.html", "report.json", "samples.parquet")
MANIFEST, BLOCKS = "audit.json", "blocks"
DETECTOR = "detector.safetensors"  # where there are enough samples of both kinds


@dataclass
class AuditResult:
    """What an audit found: by sampler, in words, as written, and where; ``notes`` are remarks for the reader."""

    findings: dict[str, Findings]
    verdict: list[str]
    report: dict[str, Any]
    files: list[Path]
    notes: list[str]


def run_audit(settings: AuditSettings, show_progress: bool = True) -> AuditResult:
    """Draw the samples that are missing in ``settings.output``, measure all, and write ``report.html``, ``report.json`` and
    ``samples.parquet``.

    An audit that was stopped resumes where it was, and its report is that of an uninterrupted one.

    Raises:
        ValueError: unreadable or unsuitable model, images, prompts or feature network; or an audit with other settings lies in
            the folder, and what differs. OSError: the folder holds other files, or cannot be written to.
    """
    output = settings.output
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; give a folder with --output.")
    folder = find_model(settings.model)
    prompts = read_prompts(settings, num_classes(folder))
    paths = {
        name: find_images(folder, given, f"--{name.replace('_', '-')}", output)
        for name, given in (("training_images", settings.training_images), ("reference", settings.reference))
        if given is not None or name == "training_images"
    }
    device = usable_device(settings.device)
    sampler = AuditSampler(Sampler(folder, settings, device), prompts)
    channels, height, width = sampler.image_shape()
    if settings.image_size is not None:
        height = width = settings.image_size
    shape = (channels, height, width)
    space = feature_space(settings.features, device, shape)
    training = load_images(paths["training_images"], shape, resize=settings.image_size is not None)
    real = training
    if settings.reference is not None:
        real = load_images(settings.reference, shape, resize=settings.image_size is not None)
    yardsticks = Yardsticks.of(training, real, space, settings.neighbors == "features")
    manifest = _manifest(settings, folder, space, prompts, device, training, real)
    _begin(settings, manifest)
    with tqdm(unit="step", disable=not show_progress) as bar:
        images, traces = _draw_missing(sampler, settings, (height, width), bar)
    with tqdm(desc="measuring", total=len(SAMPLERS), unit="sampler", disable=not show_progress) as bar:
        findings = measure(images, traces, yardsticks, _headings(settings), settings.threshold, settings.seed, bar.update)
    notes = _notes(settings, sampler, space, findings, training, yardsticks)
    detector = _fit_detector(sampler, settings, findings["euler"], manifest, notes)
    words = verdict(findings, space.name)
    report = {
        "audit": manifest,
        "verdict": words,
        "notes": notes,
        "frechet_space": space.name,
        "neighbor_space": findings["euler"].memorization.space,
        "training_images": {"count": len(training), "distinct": len(yardsticks.distinct)},
        "reference": len(real),
        "samplers": {name: found.summary() for name, found in findings.items()},
        "detector": None if detector is None else {"file": DETECTOR, "scores": detector.scores},
    }
    with written_together(output, (*FILES, DETECTOR)) as partial:
        if detector is not None:
            detector.save(partial / DETECTOR)
        pq.write_table(_table(sampler, settings, findings), partial / "samples.parquet")
        (partial / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        write_report(partial / "report.html", settings.model, findings, report, training)
    written = [*FILES] if detector is None else [*FILES, DETECTOR]
    return AuditResult(findings, words, report, [output / name for name in written], notes)


def _headings(settings: AuditSettings) -> dict[str, str]:
    return SAMPLERS | {name: heading for name, (heading, _) in settings.samplers().items()}


def _manifest(
    settings: AuditSettings,
    folder: Path,
    space: FeatureSpace,
    prompts: list[Prompt],
    device: torch.device,
    training: torch.Tensor,
    real: torch.Tensor,
) -> dict[str, Any]:
    """All that the report depends on, with contents in place of paths."""
    chosen = settings.identity | {"features": space.name, "device": device.type}
    digests = {
        "model": fingerprint(folder),
        "training_images": hashlib.sha256(training.contiguous().numpy().data).hexdigest(),
        "reference": hashlib.sha256(real.contiguous().numpy().data).hexdigest(),
        "prompts": prompts_hash(prompts),
    }
    versions = {"diffusers_kts": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    return {"settings": chosen, "sha256": digests, "versions": versions | {"python": platform.python_version()}}


def _begin(settings: AuditSettings, manifest: dict[str, Any]) -> None:
    """Leave the folder with this audit's manifest, and nothing of another audit.

    Raises:
        ValueError: another audit lies there. OSError: it holds other files, or cannot be written to.
    """
    output, path = settings.output, settings.output / MANIFEST
    held = sorted(entry.name for entry in output.iterdir()) if output.exists() else []
    if held and settings.overwrite:
        shutil.rmtree(output / BLOCKS, ignore_errors=True)
        path.unlink(missing_ok=True)
    elif held:
        if MANIFEST not in held:
            raise FileExistsError(f"{output} is not empty (it holds {held[0]}); add --overwrite, or give another --output.")
        try:
            begun = parse_json(path.read_bytes(), dict)
            held_values = {(part, name): value for part, values in begun.items() for name, value in values.items()}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({brief(error)}); add --overwrite, or give another --output.") from error
        for part, values in manifest.items():
            for name, value in json.loads(json.dumps(values)).items():
                if (old := held_values.get((part, name))) != value:
                    what = f"another {name}" if part == "sha256" else f"{name} {old!r}, not {value!r}"
                    raise ValueError(
                        f"{output} holds an audit with {what}; give the same again, another --output, or --overwrite."
                    )
        return
    with written_together(output, [MANIFEST]) as partial:
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _draw_missing(
    sampler: AuditSampler, settings: AuditSettings, size: tuple[int, int], bar: tqdm
) -> tuple[dict[str, torch.Tensor], dict[str, KPETrace]]:
    """All samples (uint8 steps in float, as a picture file has them) and records, by sampler; drawn where they are not there
    yet."""
    at_a_time, count = settings.batch_size, settings.num_samples
    blocks = [range(start, min(start + at_a_time, count)) for start in range(0, count, at_a_time)]
    bar.total = len(blocks) * len(DRAWN) * settings.num_inference_steps
    folder = settings.output / BLOCKS
    for leftover in folder.glob(".partial-*"):
        shutil.rmtree(leftover)
    whole = []
    for number, block in enumerate(blocks):
        path = folder / f"{number:06d}"
        held = _read(path)
        if held is None:

            def advance(name: str, steps: int) -> None:
                bar.set_description(SAMPLERS[name])
                bar.update(steps)

            batches = sampler.draw(block, settings.samplers(), size, advance)
            _write(path, batches)
            held = _read(path)
            assert held is not None
        else:
            bar.update(len(DRAWN) * settings.num_inference_steps)
        whole.append(held)
    images = {name: torch.cat([held[name].images for held in whole]).float() / 255 for name in SAMPLERS}
    traces = {name: KPETrace.cat([trace for held in whole if (trace := held[name].trace) is not None]) for name in DRAWN}
    return images, traces


def _write(path: Path, batches: Mapping[str, Batch]) -> None:
    """A block appears in one move, so that one that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.mkdir()
    pixels = {name: (255 * batch.images.nan_to_num(0)).round().to(torch.uint8).contiguous() for name, batch in batches.items()}
    (partial / "images.safetensors").write_bytes(save(pixels))
    for name, batch in batches.items():
        if batch.trace is not None:
            batch.trace.save(partial / f"{name}.kpe.safetensors")
    shutil.rmtree(path, ignore_errors=True)  # one that could not be read
    partial.replace(path)


def _read(path: Path) -> dict[str, Batch] | None:
    """A block as it was written, images in uint8; None if it is missing or damaged."""
    try:
        images = load_file(path / "images.safetensors")
        traces = {name: KPETrace.load(path / f"{name}.kpe.safetensors") for name in DRAWN}
        return {name: Batch(images[name], traces.get(name)) for name in SAMPLERS}
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _fit_detector(
    sampler: AuditSampler, settings: AuditSettings, plain: Findings, manifest: Mapping[str, Any], notes: list[str]
) -> MemorizationDetector | None:
    """Fitted to the plain samples; None, with a note, where that is not possible."""
    assert plain.trace is not None
    about = {"model": manifest["sha256"]["model"], "guidance_scale": sampler.sampler.argument("guidance_scale")}
    subjects = [sampler.subject(i) for i in range(settings.num_samples)]
    try:
        return MemorizationDetector.fit(plain.trace, plain.memorization.is_memorized, subjects, about)
    except ValueError as error:
        notes.append(f"No detector of memorized samples was fitted: {error}")
        return None


def _notes(
    settings: AuditSettings,
    sampler: AuditSampler,
    space: FeatureSpace,
    findings: Mapping[str, Findings],
    training: torch.Tensor,
    yardsticks: Yardsticks,
) -> list[str]:
    notes = [f"Frechet distance, precision and recall are measured in {space.note}"] if space.note else []
    if settings.reference is None:
        notes.append(
            "Frechet distance, precision and recall are against the training images: a model that copies them looks better "
            "than it is. Give held-out images with --reference."
        )
    d = yardsticks.real_features.shape[1]
    if settings.num_samples <= d:
        notes.append(
            f"There are {settings.num_samples} samples for {d} features: the Frechet distance is biased upwards, and compares "
            "within this report only."
        )
    if copies := len(training) - len(yardsticks.distinct):
        notes.append(f"{copies} training images are copies of others and were left out, so that d2 is to another image.")
    if (stock := type(sampler.sampler.own_scheduler).__name__) not in (
        "FlowMatchEulerDiscreteScheduler",
        "KTSFlowMatchScheduler",
    ):
        notes.append(f"The pipeline's {stock} was replaced by Euler steps.")
    for found in findings.values():
        if found.trace is not None and (bad := int((found.trace.nonfinite >= 0).sum())):
            notes.append(f"{bad} samples of {found.heading} diverged; they count as black pictures.")
    return notes


def _table(sampler: AuditSampler, settings: AuditSettings, findings: Mapping[str, Findings]) -> pa.Table:
    """A row per sampler and sample; energies are null for samples made from others'."""
    samples, tables = range(settings.num_samples), []
    for name, found in findings.items():
        columns: dict[str, Any] = {
            "sampler": [name] * len(samples),
            "sample": list(samples),
            "generator_seed": [sample_seed(settings.seed, i) for i in samples],
            "subject": [sampler.subject(i) for i in samples],
        }
        memory = found.memorization
        for k in (0, 1):
            columns[f"d{k + 1}"] = memory.distances[:, k].tolist()
            columns[f"training_image_{k + 1}"] = memory.indices[:, k].tolist()
        columns["memorized"] = memory.is_memorized.tolist()
        records = found.trace or findings["euler"].trace
        assert records is not None
        for key, values in records.to_dict().items():
            unknown = pa.nulls(len(samples), pa.array(values).type)
            columns[key] = columns.get(key, values if found.trace is not None else unknown)
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)
