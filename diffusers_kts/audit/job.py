"""``kts audit``: how much of its training set a model gives back, whether KTS changes that, and what its controls say."""

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
from ..features.checkpoints import sha256
from ..features.feature_space import FeatureSpace, feature_space
from ..files import written_together
from ..images.training_images import load_images
from ..kpe.trace import KPETrace
from ..memorization.fraction import THRESHOLD
from ..models import NAMES, embedded_model
from ..presets import PRESETS
from ..sampling.devices import usable_device
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from ..seeding import sample_seed
from .measures import Findings, Yardsticks, measure
from .report import write_report
from .sampling import DRAWN, SAMPLERS, AuditModel, Batch
from .verdict import verdict

FILES = ("report.html", "report.json", "samples.parquet")
MANIFEST, BLOCKS = "audit.json", "blocks"
DTYPES = ("float32", "bfloat16", "float16")
# not compared with those of the run begun: paths (their contents are), and what does not change a figure
_FREE = ("model", "output", "training_images", "reference_images", "prompts", "overwrite")


@dataclass(frozen=True)
class AuditSettings:
    """What `run_audit` does.

    Args:
        model (`str`): "memorizing", "generalizing", or a pipeline folder with a flow scheduler.
        training_images (`Path`, *optional*): file or folder that `training_images.load_images` reads; by default the
            ``training_images.npz`` beside the model.
        output (`Path`): folder for the report, and for the samples as they are drawn.
        seed (`int`): with the number of the sample, all that its noise depends on.
        num_samples (`int`): images per sampler; classes or prompts go round in order.
        num_steps (`int`): Euler steps.
        batch_size (`int`): samples drawn at a time, the unit in which a stopped audit is resumed.
        guidance_scale (`float`, *optional*), height, width (`int`, *optional*): of the pipeline's call; its own by default.
        prompts (`Path`, *optional*): text file, one prompt a line, for a pipeline that needs them.
        image_size (`int`, *optional*): side to which samples and training images are cropped and scaled for comparison; by
            default the size the model draws.
        shaping (`Mapping`): settings of the KTS sampler, over those of ``PRESETS["balanced"]``.
        touchdown (`float`): flow time of the touchdown sampler's last step.
        features (`str`): where Frechet distance, precision and recall are measured, see `features.feature_space`.
        neighbors (`str`): where nearest training images are sought, "pixels" (the paper) or "features".
        threshold (`float`): d1 / d2 below which a sample is memorized.
        reference_images (`Path`, *optional*): real images for Frechet distance, precision and recall, as ``training_images``;
            by default these. Held-out images are better: a model that copies is close to what it copies.
        device (`str`): "auto" is a GPU where there is one.
        dtype (`str`): "float32", "bfloat16" or "float16".
        overwrite (`bool`): whether an earlier audit in ``output`` may be thrown away.

    Raises:
        ValueError: a setting is out of range. TypeError: a shaping setting that does not exist.
    """

    model: str = NAMES[0]
    training_images: Path | None = None
    output: Path = Path("kts-audit")
    seed: int = 0
    num_samples: int = 1000
    num_steps: int = 100
    batch_size: int = 64
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    prompts: Path | None = None
    image_size: int | None = None
    shaping: Mapping[str, Any] = field(default_factory=dict)
    touchdown: float = 0.7
    features: str = "auto"
    neighbors: str = "pixels"
    threshold: float = THRESHOLD
    reference_images: Path | None = None
    device: str = "auto"
    dtype: str = "float32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("num_samples", 8), ("num_steps", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}.")
        for name in ("height", "width", "image_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale is {self.guidance_scale}; give a finite number, 1 for no guidance.")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; give a ratio above 0 and at most 1 (the paper uses 1/3).")
        for name, allowed in (("neighbors", ("pixels", "features")), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(allowed)}.")
        for shaping in self.shapings().values():
            KTSFlowMatchScheduler.from_config({}, **shaping)

    def shapings(self) -> dict[str, dict[str, Any]]:
        """Settings of the samplers whose gain is known beforehand."""
        kts = PRESETS["balanced"] | dict(self.shaping)
        off = PRESETS["off"] | {"tau_split": kts["tau_split"]}
        return {"euler": off, "kts": kts, "touchdown": off | {"touchdown": self.touchdown}}

    def headings(self) -> dict[str, str]:
        kts = self.shapings()["kts"]
        own = {"kts": f"KTS {kts['alpha_0']:g} / {kts['beta_0']:g}", "touchdown": f"touchdown {self.touchdown:g}"}
        return SAMPLERS | own


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

    An audit that was stopped goes on where it was, and its report is that of an uninterrupted one.

    Raises:
        ValueError: unreadable or unsuitable model, images, prompts or feature network; or an audit with other settings lies in
            the folder, and what differs. OSError: the folder holds other files, or cannot be written to.
    """
    output = settings.output
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; give a folder with --output.")
    folder = embedded_model(settings.model) if settings.model in NAMES else Path(settings.model)
    if not folder.is_dir():
        raise ValueError(f"model {settings.model!r} is no folder; give {' or '.join(NAMES)}, or a pipeline folder.")
    path = settings.training_images or folder / "training_images.npz"
    if not path.exists():
        raise ValueError(f"there are no training images at {path}; give a file or folder with --training-images.")
    device = usable_device(settings.device)
    space = feature_space(settings.features, device)
    arguments = {name: getattr(settings, name) for name in ("guidance_scale", "height", "width")}
    model = AuditModel(folder, _prompts(settings.prompts), device, getattr(torch, settings.dtype), arguments)
    shape = model.trial()
    if settings.image_size is not None:
        shape = (shape[0], settings.image_size, settings.image_size)
    training = load_images(path, shape, resize=settings.image_size is not None)
    real = training
    if settings.reference_images is not None:
        real = load_images(settings.reference_images, shape, resize=settings.image_size is not None)
    yardsticks = Yardsticks.of(training, real, space, settings.neighbors == "features")
    manifest = _manifest(settings, folder, space, model, training, real)
    _begin(settings, manifest)
    with tqdm(unit="step", disable=not show_progress) as bar:
        images, traces = _draw_missing(model, settings, shape, bar)
    with tqdm(desc="measuring", total=len(SAMPLERS), unit="sampler", disable=not show_progress) as bar:
        findings = measure(images, traces, yardsticks, settings.headings(), settings.threshold, settings.seed, bar.update)
    notes = _notes(settings, model, space, findings, training, yardsticks)
    words = verdict(findings, space.name)
    report = {
        "audit": manifest,
        "verdict": words,
        "notes": notes,
        "frechet_space": space.name,
        "neighbor_space": findings["euler"].memorization.space,
        "training_images": {"count": len(training), "distinct": len(yardsticks.distinct)},
        "reference_images": len(real),
        "samplers": {name: found.summary() for name, found in findings.items()},
    }
    with written_together(output, FILES) as partial:
        pq.write_table(_table(model, settings, findings), partial / "samples.parquet")
        (partial / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        write_report(partial / "report.html", settings.model, findings, report, training)
    return AuditResult(findings, words, report, [output / name for name in FILES], notes)


def _prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the prompts in {path} cannot be read ({brief(error)}); give a text file, a prompt a line."
        ) from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts; give a text file, one prompt a line.")
    return prompts


def _manifest(
    settings: AuditSettings, folder: Path, space: FeatureSpace, model: AuditModel, training: torch.Tensor, real: torch.Tensor
) -> dict[str, Any]:
    """All that the report depends on, with contents in place of paths."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    chosen["shaping"] = settings.shapings()["kts"]
    chosen |= {"features": space.name, "device": str(model.pipe.device.type)}
    digests = {
        "model": sha256(
            path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in (".json", ".safetensors")
        ),
        "training_images": hashlib.sha256(training.contiguous().numpy().data).hexdigest(),
        "reference_images": hashlib.sha256(real.contiguous().numpy().data).hexdigest(),
        "prompts": hashlib.sha256("\n".join(map(str, model.subjects)).encode()).hexdigest(),
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
            begun = json.loads(path.read_text())
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
    model: AuditModel, settings: AuditSettings, shape: tuple[int, int, int], bar: tqdm
) -> tuple[dict[str, torch.Tensor], dict[str, KPETrace]]:
    """All samples (uint8 steps in float, as a picture file has them) and records, by sampler; drawn where they are not there
    yet."""
    size, count = settings.batch_size, settings.num_samples
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    bar.total = len(blocks) * len(DRAWN) * settings.num_steps
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

            batches = model.draw(block, settings.seed, settings.num_steps, settings.shapings(), shape[1:], advance)
            _write(path, batches)
            held = _read(path)
            assert held is not None
        else:
            bar.update(len(DRAWN) * settings.num_steps)
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
    os.replace(partial, path)


def _read(path: Path) -> dict[str, Batch] | None:
    """A block as it was written, images in uint8; None if it is missing or damaged."""
    try:
        images = load_file(path / "images.safetensors")
        traces = {name: KPETrace.load(path / f"{name}.kpe.safetensors") for name in DRAWN}
        return {name: Batch(images[name], traces.get(name)) for name in SAMPLERS}
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _notes(
    settings: AuditSettings,
    model: AuditModel,
    space: FeatureSpace,
    findings: Mapping[str, Findings],
    training: torch.Tensor,
    yardsticks: Yardsticks,
) -> list[str]:
    notes = [f"Frechet distance, precision and recall are measured in {space.note}"] if space.note else []
    if settings.reference_images is None:
        notes.append(
            "Frechet distance, precision and recall are against the training images: a model that copies them looks better "
            "than it is. Give held-out images with --reference-images."
        )
    d = yardsticks.real_features.shape[1]
    if settings.num_samples <= d:
        notes.append(
            f"There are {settings.num_samples} samples for {d} features: the Frechet distance is biased upwards, and compares "
            "within this report only."
        )
    if copies := len(training) - len(yardsticks.distinct):
        notes.append(f"{copies} training images are copies of others and were left out, so that d2 is to another image.")
    if model.stock_scheduler not in ("FlowMatchEulerDiscreteScheduler", "KTSFlowMatchScheduler"):
        notes.append(f"The pipeline's {model.stock_scheduler} was replaced by Euler steps.")
    for found in findings.values():
        if found.trace is not None and (bad := int((found.trace.nonfinite >= 0).sum())):
            notes.append(f"{bad} samples of {found.heading} diverged; they count as black pictures.")
    return notes


def _table(model: AuditModel, settings: AuditSettings, findings: Mapping[str, Findings]) -> pa.Table:
    """A row per sampler and sample; energies are null for samples made from others'."""
    samples, tables = range(settings.num_samples), []
    for name, found in findings.items():
        columns: dict[str, Any] = {
            "sampler": [name] * len(samples),
            "sample": list(samples),
            "generator_seed": [sample_seed(settings.seed, i) for i in samples],
            "subject": [model.subject(i) for i in samples],
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
