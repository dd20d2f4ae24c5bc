"""``kts audit --checkpoints``: memorization and quality against the training step, and the last good checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from ..files import written_together
from ..sampling.devices import usable_device
from ..sampling.find import find_model, fingerprint, load_model, num_classes
from ..sampling.prompts import Prompt, prompts_hash, read_prompts
from ..sampling.sampler import Sampler
from .checkpoints import EMA, Checkpoint, find_checkpoints, load_parts, put_lora, with_parts_of
from .ground import Ground, about, image_paths, measured_in
from .measures import Findings, measure_sampler
from .result import FORMAT, AuditResult, finished
from .sampling import Batch, PlainSampler
from .series_report import write_series_report
from .settings import AuditSettings
from .store import BLOCKS, CHECKPOINTS, begin, drawn_once, joined, versions
from .table import diverged, samples_table
from .verdict import last_below, series_verdict

FILES = ("report.html", "report.json", "samples.parquet")
SAMPLES = "samples"  # the one sampler of a checkpoint
OF_KTS = ("shaping", "touchdown")


def run_series(settings: AuditSettings, show_progress: bool = True) -> AuditResult:
    """As `run_audit`, of checkpoints: each draws the same noises with its own scheduler. Of LoRAs and of parts, the base
    model comes first.

    Raises:
        ValueError, OSError: as `run_audit`; or checkpoints that are missing, foreign or of several kinds.
    """
    checkpoints = find_checkpoints([Path(path) for path in settings.checkpoints])
    kind, folder, base = checkpoints[0].kind, checkpoints[0].path, None
    if kind != "pipeline" or folder is None:
        folder = base = find_model(settings.model)
        if kind == "part of a pipeline":
            checkpoints = with_parts_of(base, checkpoints)
        checkpoints.insert(0, Checkpoint(None, 0, fingerprint(base), kind))
    prompts = read_prompts(settings, num_classes(folder))
    training = image_paths(settings, folder)
    device = usable_device(settings.device)
    loaded = _Loaded(checkpoints[0], base, settings, prompts, device)
    shape = loaded.sampler.image_shape()
    if kind == "LoRA":
        for checkpoint in reversed(checkpoints):  # all are tried before one is drawn from; the base model is left
            loaded.put(checkpoint)
    ground = Ground.of(settings, training, shape, device)
    chosen = {name: value for name, value in settings.identity.items() if name not in OF_KTS}
    digests = {checkpoint.name: checkpoint.sha256 for checkpoint in checkpoints}
    manifest: dict[str, Any] = {
        "settings": chosen | {"features": ground.space.name, "device": device.type},
        "sha256": {**ground.sha256, "prompts": prompts_hash(prompts)},
        "versions": versions(),
        CHECKPOINTS: digests,
    }
    begin(settings, manifest)
    blocks, findings = settings.blocks(), dict[str, Findings]()
    with tqdm(total=len(checkpoints) * settings.num_samples, unit="sample", disable=not show_progress) as bar:
        for checkpoint in checkpoints:
            bar.set_description(checkpoint.name)

            def draw(block: range, checkpoint: Checkpoint = checkpoint) -> dict[str, Batch]:
                return {SAMPLES: loaded.put(checkpoint).plain(block, ground.size)}

            held = []
            place = settings.output / BLOCKS / checkpoint.sha256[:16]
            for block, batches in zip(blocks, drawn_once(place, blocks, [SAMPLES], [SAMPLES], draw), strict=True):
                held.append(batches)
                bar.update(len(block))
            drawn = joined(held, SAMPLES)
            findings[checkpoint.name] = measure_sampler(
                checkpoint.name, drawn, ground.yardsticks, settings.threshold, settings.seed, copies=ground.copies
            )
    last = last_below(findings, settings.limit)
    words = series_verdict(findings, settings.limit, ground.space.name)
    notes = ground.notes(settings) + diverged(findings)
    if averaged := {part.name for checkpoint in checkpoints for part in checkpoint.parts.values() if part.name.endswith(EMA)}:
        notes.append(f"Averaged weights were drawn from where a checkpoint has them ({', '.join(sorted(averaged))}).")
    worst = max(findings.values(), key=lambda found: found.f_mem.count)
    steps = {checkpoint.name: checkpoint.step for checkpoint in checkpoints}
    report = {
        **FORMAT,
        **about(loaded.sampler, device),
        "model": str(folder.parent) if base is None else settings.model,
        "audit": manifest,
        "verdict": words,
        "notes": notes,
        **measured_in(ground, worst.memorization.space),
        "most_reproduced": ground.training.most_reproduced(worst.memorization),
        "most_reproduced_by": worst.heading,
        "limit": settings.limit,
        "last_below": last,
        "checkpoints": {
            name: {"step": steps[name], "sha256": digests[name]} | found.summary() for name, found in findings.items()
        },
    }
    with written_together(settings.output, FILES) as partial:
        pq.write_table(samples_table(loaded.sampler, settings, findings), partial / "samples.parquet")
        (partial / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        write_series_report(partial / "report.html", findings, steps, report, ground.training)
    written = [settings.output / name for name in FILES]
    return finished(settings, AuditResult(findings, words, report, written, notes))


class _Loaded:
    """The checkpoint that is in memory, one at a time."""

    def __init__(
        self, first: Checkpoint, base: Path | None, settings: AuditSettings, prompts: list[Prompt], device: torch.device
    ) -> None:
        self.base, self.settings, self.prompts, self.device = base, settings, prompts, device
        self.sampler, self.held = self._load(first), first.path

    def _load(self, checkpoint: Checkpoint) -> PlainSampler:
        settings, source = self.settings, checkpoint.path or self.base
        if checkpoint.parts and self.base is not None:
            dtype = getattr(torch, settings.dtype)
            parts = load_parts(checkpoint, self.base, dtype)
            source = load_model(self.base, settings.model, dtype=dtype, **parts)
        elif checkpoint.path is not None:
            settings = replace(settings, model=str(checkpoint.path))
        return PlainSampler(Sampler(source, settings, self.device), self.prompts)

    def put(self, checkpoint: Checkpoint) -> PlainSampler:
        """The sampler of a checkpoint."""
        if self.held != checkpoint.path and checkpoint.kind == "LoRA":
            put_lora(self.sampler.sampler.pipe, checkpoint)
        elif self.held != checkpoint.path:
            del self.sampler  # before the next is loaded: a device may have room for one
            self.sampler = self._load(checkpoint)
        self.held = checkpoint.path
        return self.sampler
