"""The main job, ``kts demo``: the same noises drawn three ways by one model, measured, compared and put into pictures."""

import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from . import __version__
from .errors import brief
from .files import written_together
from .images.training_images import load_images
from .kpe.trace import KPETrace
from .memorization.fraction import MemorizedFraction, measure_memorization, memorized
from .models import NAMES, embedded_model
from .pipelines.loading import load_pipeline
from .pipelines.pipeline_flow_class_conditional import ClassConditionalFlowPipeline
from .plotting import plot_neighbors, plot_power, plot_samples
from .presets import PRESETS
from .schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from .seeding import sample_generators, sample_seed

BATCH_SIZE = 64
FILES = ("samples.png", "energy.png", "neighbors.png", "kpe.parquet", "summary.json")
SHOWN = 64  # samples in a picture
NEIGHBOR_ROWS = 8


@dataclass(frozen=True)
class DemoSettings:
    """What `run_demo` does.

    Args:
        model (`str`): "memorizing", "generalizing", or a folder with a saved `ClassConditionalFlowPipeline`.
        output (`Path`): folder for the pictures and tables.
        seed (`int`): with the number of the sample, all that its noise depends on.
        num_samples (`int`): images per sampler; their classes go round in order.
        num_steps (`int`): Euler steps.
        guidance_scale (`float`): 1 is off.
        shaping (`Mapping`): settings of the KTS sampler, over those of ``PRESETS["balanced"]``; ``tau_split`` divides early
            from late energy for every sampler.
        touchdown (`float`): flow time at which the touchdown sampler makes its one last step.
        training_images (`Path`, *optional*): a file or folder that `training_images.load_images` reads; by default the
            ``training_images.npz`` that lies beside the model, if there is one.
        overwrite (`bool`): whether the five files may replace those of an earlier run; other files are left alone.

    Raises:
        ValueError: a setting is out of range. TypeError: a shaping setting that does not exist.
    """

    model: str = NAMES[0]
    output: Path = Path("kts-demo")
    seed: int = 0
    num_samples: int = 64
    num_steps: int = 100
    guidance_scale: float = 1.0
    shaping: Mapping[str, Any] = field(default_factory=dict)
    touchdown: float = 0.7
    training_images: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give 0 or a positive whole number.")
        for name in ("num_samples", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1.")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale is {self.guidance_scale}; give a finite number, 1 for no guidance.")
        for _, shaping in self.samplers().values():
            KTSFlowMatchScheduler.from_config({}, **shaping)

    def samplers(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Heading and shaping settings of every sampler, by its name in the tables."""
        kts = PRESETS["balanced"] | dict(self.shaping)
        off = PRESETS["off"] | {"tau_split": kts["tau_split"]}
        return {
            "euler": ("plain Euler", off),
            "kts": (f"KTS {kts['alpha_0']:g} / {kts['beta_0']:g}", kts),
            "touchdown": (f"touchdown {self.touchdown:g}", off | {"touchdown": self.touchdown}),
        }


@dataclass
class SamplerResult:
    """One sampler: images (B, C, H, W) in [0, 1], energies, and, where the training images are known, the two nearest
    ones (``distances`` and ``indices``, (B, 2)) and F_mem."""

    heading: str
    images: torch.Tensor
    trace: KPETrace
    seconds: float
    distances: torch.Tensor | None = None
    indices: torch.Tensor | None = None
    f_mem: MemorizedFraction | None = None


@dataclass
class DemoResult:
    """What a demo found: a result per sampler, the summary as written, the files, and remarks for the reader."""

    samplers: dict[str, SamplerResult]
    summary: dict[str, Any]
    files: list[Path]
    notes: list[str]


def run_demo(settings: DemoSettings, show_progress: bool = True) -> DemoResult:
    """Draw the same noises with each sampler and write pictures and tables to ``settings.output``.

    The files appear together when all is done; a run that fails or is stopped leaves the folder as it was.

    Raises:
        ValueError: the model is unreadable or of another kind, or the training images do not fit it.
        OSError: the output folder is not empty (without ``overwrite``) or cannot be written to.
    """
    _check_output(settings)
    pipe, folder = _load_model(settings.model)
    training = _training_images(settings, folder, _image_shape(pipe))
    with written_together(settings.output, FILES) as partial:
        results = _draw(pipe, settings, show_progress)
        notes = []
        if training is None:
            notes.append(
                "the training images of this model are not known, so neither is what it memorized (--training-images)"
            )
        else:
            for result in results.values():
                found = measure_memorization(result.images, training)
                result.distances, result.indices, result.f_mem = found.distances, found.indices, found.f_mem
        summary = _summary(settings, results, notes)
        _draw_pictures(partial, results, training)
        pq.write_table(_table(pipe, settings, results), partial / "kpe.parquet")
        (partial / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return DemoResult(results, summary, [p for name in FILES if (p := settings.output / name).exists()], notes)


def _check_output(settings: DemoSettings) -> None:
    output = settings.output
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; give a folder with --output.")
    held = sorted(path.name for path in output.iterdir()) if output.exists() else []
    if held and not settings.overwrite:
        raise FileExistsError(f"{output} is not empty (it holds {held[0]}); add --overwrite, or give another --output.")
    blocked = [name for name in FILES if (output / name).is_dir()]
    if blocked:
        raise IsADirectoryError(f"{output / blocked[0]} is a folder, where a file is to go; give another --output.")


def _load_model(model: str) -> tuple[ClassConditionalFlowPipeline, Path]:
    folder = embedded_model(model) if model in NAMES else Path(model)
    remedy = f"give {' or '.join(NAMES)}, or a folder written by ClassConditionalFlowPipeline.save_pretrained"
    if not folder.is_dir():
        raise ValueError(f"model {model!r} is no folder; {remedy}.")
    try:
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model {model!r} has no readable model_index.json ({brief(error)}); {remedy}.") from error
    if name != ClassConditionalFlowPipeline.__name__:
        raise ValueError(f"model {model!r} is a {name}, which this demo cannot draw from; {remedy}.")
    try:
        pipe = load_pipeline(folder)
    except Exception as error:  # whatever a damaged folder makes diffusers, safetensors or torch raise
        raise ValueError(f"model {model!r} cannot be loaded ({brief(error)}); {remedy}.") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe, folder


def _image_shape(pipe: ClassConditionalFlowPipeline) -> tuple[int, int, int]:
    side = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    return (pipe.transformer.config.in_channels if pipe.vae is None else 3, side, side)


def _training_images(settings: DemoSettings, folder: Path, shape: tuple[int, int, int]) -> torch.Tensor | None:
    path = settings.training_images or folder / "training_images.npz"
    if settings.training_images is None and not path.exists():
        return None
    return load_images(path, shape)


def _draw(pipe: ClassConditionalFlowPipeline, settings: DemoSettings, show_progress: bool) -> dict[str, SamplerResult]:
    config, results = pipe.scheduler.config, {}
    samplers = settings.samplers()
    blocks = [range(i, min(i + BATCH_SIZE, settings.num_samples)) for i in range(0, settings.num_samples, BATCH_SIZE)]
    with tqdm(total=len(samplers) * len(blocks) * settings.num_steps, unit="step", disable=not show_progress) as bar:
        for name, (heading, shaping) in samplers.items():
            bar.set_description(heading)
            pipe.scheduler = KTSFlowMatchScheduler.from_config(config, **shaping)
            images, traces, began = [], [], time.perf_counter()
            for block in blocks:
                before = bar.n
                images.append(_draw_block(pipe, settings, block, bar))
                traces.append(pipe.scheduler.kpe)
                bar.update(before + settings.num_steps - bar.n)  # a touchdown takes fewer
            seconds = time.perf_counter() - began
            results[name] = SamplerResult(heading, torch.cat(images), KPETrace.cat(traces), seconds)
    return results


def _draw_block(pipe: ClassConditionalFlowPipeline, settings: DemoSettings, block: range, bar: tqdm) -> torch.Tensor:
    def advance(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        bar.update()
        return tensors

    drawn: Any = pipe(
        [i % pipe.num_classes for i in block],
        num_inference_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        generator=sample_generators(settings.seed, block),
        output_type="pt",
        callback_on_step_end=advance,
    )
    return drawn.images.float().cpu()


def _summary(settings: DemoSettings, results: dict[str, SamplerResult], notes: list[str]) -> dict[str, Any]:
    versions = {"diffusers_kts": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    chosen = asdict(settings) | {"output": str(settings.output), "shaping": dict(settings.shaping)}
    chosen["training_images"] = settings.training_images and str(settings.training_images)
    samplers = {name: _sampler_summary(result) for name, result in results.items()}
    return {
        "versions": versions | {"python": platform.python_version()},
        "settings": chosen,
        "samplers": samplers,
        "notes": notes,
    }


def _sampler_summary(result: SamplerResult) -> dict[str, Any]:
    trace, energies = result.trace, {}
    for name, energy in (("path_energy", trace.path_energy), ("model_energy", trace.model_energy)):
        for part in ("total", "early", "late"):
            values = getattr(energy, part).double()
            values = values[values.isfinite()]  # a sample that diverged is marked in kpe.parquet
            energies[f"{name}_{part}"] = {"mean": _number(values.mean()), "median": _number(values.median())}
    f_mem = result.f_mem and asdict(result.f_mem) | {"fraction": result.f_mem.fraction}
    return {
        "heading": result.heading,
        "shaping": trace.settings,
        "f_mem": f_mem,
        "network_calls": trace.num_steps,
        "seconds": round(result.seconds, 3),
        "d": trace.d,
        "energy": energies,
    }


def _number(value: torch.Tensor) -> float | None:
    """A float that JSON knows: None for NaN and infinity."""
    return float(value) if torch.isfinite(value) else None


def _table(pipe: ClassConditionalFlowPipeline, settings: DemoSettings, results: dict[str, SamplerResult]) -> pa.Table:
    """A row per sampler and sample; ``generator_seed`` draws the same noise alone, d1 and d2 are NaN where unknown."""
    samples = range(settings.num_samples)
    labels = [i % pipe.num_classes for i in samples]
    tables = []
    for name, result in results.items():
        unknown = torch.full((len(samples), 2), torch.nan)
        distances = unknown if result.distances is None else result.distances
        columns: dict[str, Any] = {"sampler": [name] * len(samples), "seed": [settings.seed] * len(samples)}
        columns["generator_seed"] = [sample_seed(settings.seed, i) for i in samples]
        columns["label"] = labels
        columns["class_name"] = [pipe.id2label.get(label, str(label)) for label in labels]
        columns |= result.trace.to_dict()
        columns["d1"], columns["d2"] = distances[:, 0].tolist(), distances[:, 1].tolist()
        columns["memorized"] = pa.array(
            [None] * len(samples) if result.distances is None else memorized(distances).tolist(), pa.bool_()
        )
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _draw_pictures(folder: Path, results: dict[str, SamplerResult], training: torch.Tensor | None) -> None:
    by_heading = {result.heading: result for result in results.values()}
    power: Any = plot_power({heading: r.trace for heading, r in by_heading.items()}).figure
    power.savefig(folder / "energy.png", dpi=150)

    images, marked = {}, {}
    for heading, r in by_heading.items():
        f_mem = "" if r.f_mem is None else f", F_mem {r.f_mem.fraction:.0%}"
        images[f"{heading}\n{r.trace.num_steps} network calls{f_mem}"] = r.images[:SHOWN]
        if r.distances is not None:
            marked[list(images)[-1]] = memorized(r.distances)
    title = "The same noise in the same place" + ("" if training is None else "; framed: memorized (d1/d2 < 1/3)")
    plot_samples(images, marked or None, title).savefig(folder / "samples.png", dpi=150)

    if training is not None:
        euler = results["euler"].distances
        assert euler is not None
        ratios = torch.where(euler[:, 1] == 0, 0.0, euler[:, 0] / euler[:, 1])
        closest = ratios.argsort(stable=True)[:NEIGHBOR_ROWS].tolist()
        figure = plot_neighbors(
            closest,
            {heading: r.images for heading, r in by_heading.items()},
            training,
            {heading: r.distances for heading, r in by_heading.items() if r.distances is not None},
            {heading: r.indices for heading, r in by_heading.items() if r.indices is not None},
            "Closest to the training images, each beside its two nearest; number: d1/d2, framed below 1/3 (memorized)",
        )
        figure.savefig(folder / "neighbors.png", dpi=150)
