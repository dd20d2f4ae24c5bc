"""``kts audit``: how much of its training set a model gives back, whether KTS changes that, and what its controls say."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from ..files import written_together
from ..kpe.trace import KPETrace
from ..memorization.detector import MemorizationDetector
from ..memorization.detector_fit import fit_detector
from ..sampling.devices import usable_device
from ..sampling.find import find_model, fingerprint, num_classes
from ..sampling.prompts import prompts_hash, read_prompts
from ..sampling.sampler import Sampler
from .card import read_card
from .ground import Ground, about, image_paths, measured_in
from .measures import Findings, measure
from .report import write_report
from .result import FORMAT, AuditResult, finished
from .sampling import DRAWN, SAMPLERS, AuditSampler
from .settings import AuditSettings
from .store import BLOCKS, begin, drawn_once, joined, versions
from .table import diverged, samples_table
from .verdict import verdict

FILES = ("report.html", "report.json", "samples.parquet")
DETECTOR = "detector.safetensors"  # where there are enough samples of both kinds


def run_audit(settings: AuditSettings, show_progress: bool = True) -> AuditResult:
    """Draw the samples that are missing in ``settings.output``, measure all, and write ``report.html``, ``report.json`` and
    ``samples.parquet``; of ``settings.checkpoints``, where there are any.

    An audit that was stopped resumes where it was, and its report is that of an uninterrupted one.

    Raises:
        ValueError: unreadable or unsuitable model, checkpoints, images, prompts or feature network; or an audit with other
            settings lies in the folder, and what differs. OSError: the folder holds other files, or cannot be written to.
    """
    output = settings.output
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; give a folder with --output.")
    if settings.card is not None:
        read_card(settings.card)  # refuses now what would fail once all is drawn
    if settings.checkpoints:
        from .series import run_series

        return run_series(settings, show_progress)
    folder = find_model(settings.model)
    prompts = read_prompts(settings, num_classes(folder))
    training = image_paths(settings, folder)
    device = usable_device(settings.device)
    sampler = AuditSampler(Sampler(folder, settings, device), prompts)
    ground = Ground.of(settings, training, sampler.image_shape(), device)
    chosen = settings.identity | {"features": ground.space.name, "device": device.type}
    digests = {"model": fingerprint(folder), **ground.sha256, "prompts": prompts_hash(prompts)}
    manifest = {"settings": chosen, "sha256": digests, "versions": versions()}
    begin(settings, manifest)
    with tqdm(unit="step", disable=not show_progress) as bar:
        images, traces = _draw_missing(sampler, settings, ground.size, bar)
    headings = SAMPLERS | {name: heading for name, (heading, _) in settings.samplers().items()}
    with tqdm(desc="measuring", total=len(SAMPLERS), unit="sampler", disable=not show_progress) as bar:
        findings = measure(
            images, traces, ground.yardsticks, headings, settings.threshold, settings.seed, ground.copies, bar.update
        )
    plain = findings["euler"]
    notes = ground.notes(settings) + _notes(sampler, findings)
    detector = _fit_detector(sampler, settings, plain, manifest, notes)
    words = verdict(findings, ground.space.name)
    report = {
        **FORMAT,
        **about(sampler, device),
        "audit": manifest,
        "verdict": words,
        "notes": notes,
        **measured_in(ground, plain.memorization.space),
        "most_reproduced": ground.training.most_reproduced(plain.memorization),
        "samplers": {name: found.summary() for name, found in findings.items()},
        "detector": None if detector is None else {"file": DETECTOR, "scores": detector.scores},
    }
    with written_together(output, (*FILES, DETECTOR)) as partial:
        if detector is not None:
            detector.save(partial / DETECTOR)
        pq.write_table(samples_table(sampler, settings, findings), partial / "samples.parquet")
        (partial / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        write_report(partial / "report.html", settings.model, findings, report, ground.training)
    written = [output / name for name in FILES]
    if detector is not None:
        written.append(output / DETECTOR)
    return finished(settings, AuditResult(findings, words, report, written, notes))


def _draw_missing(
    sampler: AuditSampler, settings: AuditSettings, size: tuple[int, int], bar: tqdm
) -> tuple[dict[str, torch.Tensor], dict[str, KPETrace]]:
    """All samples and records, by sampler."""
    blocks = settings.blocks()
    steps = len(DRAWN) * settings.num_inference_steps
    bar.total = len(blocks) * steps

    def advance(name: str, steps: int) -> None:
        bar.set_description(SAMPLERS[name])
        bar.update(steps)

    whole = []
    draw = lambda block: sampler.draw(block, settings.samplers(), size, advance)  # noqa: E731
    for number, held in enumerate(drawn_once(settings.output / BLOCKS, blocks, [*SAMPLERS], DRAWN, draw), 1):
        whole.append(held)
        bar.update(number * steps - bar.n)  # of a block that was there
    batches = {name: joined(whole, name) for name in SAMPLERS}
    traces = {name: batch.trace for name, batch in batches.items() if batch.trace is not None}
    return {name: batch.images for name, batch in batches.items()}, traces


def _fit_detector(
    sampler: AuditSampler, settings: AuditSettings, plain: Findings, manifest: Mapping[str, Any], notes: list[str]
) -> MemorizationDetector | None:
    """Fitted to the plain samples; None, with a note, where that is not possible."""
    assert plain.trace is not None
    about = {"model": manifest["sha256"]["model"], "guidance_scale": sampler.sampler.argument("guidance_scale")}
    subjects = [sampler.subject(i) for i in range(settings.num_samples)]
    try:
        return fit_detector(plain.trace, plain.memorization.is_memorized, subjects, about)
    except ValueError as error:
        notes.append(f"No detector of memorized samples was fitted: {error}")
        return None


def _notes(sampler: AuditSampler, findings: Mapping[str, Findings]) -> list[str]:
    notes = []
    stock = type(sampler.sampler.own_scheduler).__name__
    if stock not in ("FlowMatchEulerDiscreteScheduler", "KTSFlowMatchScheduler"):
        notes.append(f"The pipeline's {stock} was replaced by Euler steps.")
    return notes + diverged(findings)
