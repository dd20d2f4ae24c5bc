"""The work of ``kts demo``: draw, measure, compare, picture."""

import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from .. import __version__
from ..files import written_together
from ..images.training_images import load_images
from ..kpe.plot import plot_power
from ..kpe.trace import KPETrace
from ..memorization.fraction import MemorizedFraction, measure_memorization, memorized
from ..models import PROMPTS
from ..plotting import plot_neighbors, plot_samples
from ..sampling.devices import usable_device
from ..sampling.find import IMAGES, find_images, find_model, num_classes
from ..sampling.prompts import Prompt, in_turn, read_prompts
from ..sampling.sampler import Sampler, after_each_step
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from ..seeding import sample_seed
from .settings import DemoSettings

FILES = ("samples.png", "energy.png", "neighbors.png", "kpe.parquet", "summary.json")
SHOWN = 64  # samples in a picture
NEIGHBOR_ROWS = 8


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
    folder = find_model(settings.model)
    if (folder / PROMPTS).exists() and not any((settings.prompt, settings.prompts, settings.dataset, settings.class_labels)):
        settings = replace(settings, prompts=str(folder / PROMPTS))
    prompts = read_prompts(settings, num_classes(folder))
    path = None
    if settings.training_images is not None or (folder / IMAGES).exists():
        path = find_images(folder, settings.training_images, "--training-images", settings.output)
    sampler = Sampler(folder, settings, usable_device(settings.device))
    sampler.check_comparable()
    sampler.check_prompts(prompts)
    shape = sampler.image_shape(prompts)
    training = None if path is None else load_images(path, shape)
    with written_together(settings.output, FILES) as partial:
        results = _draw(sampler, prompts, settings, show_progress)
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
        pq.write_table(_table(sampler, prompts, settings, results), partial / "kpe.parquet")
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


def _draw(sampler: Sampler, prompts: list[Prompt], settings: DemoSettings, show_progress: bool) -> dict[str, SamplerResult]:
    results, samplers = {}, settings.samplers()
    size, steps = settings.batch_size, settings.num_inference_steps or 0
    blocks = [range(i, min(i + size, settings.num_samples)) for i in range(0, settings.num_samples, size)]
    with tqdm(total=len(samplers) * len(blocks) * steps, unit="step", disable=not show_progress) as bar:
        advance = after_each_step(lambda tensors: bar.update() and None)  # tensors stay as they are
        for name, (heading, shaping) in samplers.items():
            bar.set_description(heading)
            sampler.shape(KTSFlowMatchScheduler, shaping)
            batches, began = [], time.perf_counter()
            for block in blocks:
                before = bar.n
                batches.append(sampler.draw(block, in_turn(prompts, block), callback_on_step_end=advance))
                bar.update(before + steps - bar.n)  # a touchdown takes fewer
            seconds = time.perf_counter() - began
            images, trace = torch.cat([drawn.images for drawn in batches]), KPETrace.cat([drawn.trace for drawn in batches])
            results[name] = SamplerResult(heading, images, trace, seconds)
    return results


def _summary(settings: DemoSettings, results: dict[str, SamplerResult], notes: list[str]) -> dict[str, Any]:
    versions = {"diffusers_kts": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
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


def _table(sampler: Sampler, prompts: list[Prompt], settings: DemoSettings, results: dict[str, SamplerResult]) -> pa.Table:
    """A row per sampler and sample; ``generator_seed`` draws the same noise alone, d1 and d2 are NaN where unknown."""
    samples = range(settings.num_samples)
    subjects = [sampler.described(prompt) for prompt in in_turn(prompts, samples)]
    tables = []
    for name, result in results.items():
        unknown = torch.full((len(samples), 2), torch.nan)
        distances = unknown if result.distances is None else result.distances
        columns: dict[str, Any] = {"sampler": [name] * len(samples), "seed": [settings.seed] * len(samples)}
        columns["generator_seed"] = [sample_seed(settings.seed, i) for i in samples]
        columns |= {column: [subject[column] for subject in subjects] for column in subjects[0]}
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
            "Closest to the training images, each next to its two nearest; number: d1/d2, framed below 1/3 (memorized)",
        )
        figure.savefig(folder / "neighbors.png", dpi=150)
