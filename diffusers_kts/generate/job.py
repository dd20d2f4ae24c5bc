"""The batch job, ``kts generate`` and ``accelerate launch -m diffusers_kts.generate``: samples of any flow pipeline by the
thousand, each with its kinetic path energy.

Which process draws a block changes nothing about it: noise depends on (seed, index), blocks are cut by index, a block is
committed by one atomic write. So any number of processes, machines and interrupted runs give the same bytes, and whatever is
missing is what the next run draws.
"""

import dataclasses
import math
import os
import platform
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from tqdm import tqdm

from .. import __version__
from ..hub import reach
from ..memorization.detector import MemorizationDetector
from ..sampling.columns import check_gaps
from ..sampling.find import find_model, fingerprint, num_classes
from ..sampling.prompts import column_types, first_difference, prompt_lines, prompts_hash, read_prompts
from ..sampling.sampler import Sampler
from .assemble import assemble, assembled
from .drawing import Drawing
from .formats import check_packages
from .guard import Guard
from .ledger import Claims, Ledger, Manifest
from .media import Sample, encode
from .orphan import end_with_launcher
from .plan import Plan
from .progress import Progress
from .rows import Rows
from .selection import Selector
from .settings import GenerateSettings
from .storage import PRIVATE, Store
from .upload import check_hub, push_to_hub, write_card
from .verify import Inspection, block_name, inspect_output, is_damaged

CONFIG = "config.yaml"
TIMEOUT = timedelta(days=7)  # ranks wait for each other at the end only, however long the others take
T = TypeVar("T")


@dataclass
class GenerateResult:
    """What a job did.

    Attributes:
        complete: every block is there. samples: how many are there and kept. main: False on ranks that stay silent.
        calls, calls_saved: network calls summed over samples, and how many screening saved.
        failed: reason by block, of this run. stopped: why it ended early. plan: what --dry-run found, in words.
        seconds, cpu_seconds: of drawing and writing, by the clock and of this process's processors.
        waited: of them, seconds in which drawing stood still because the writers were behind.
    """

    complete: bool
    main: bool = True
    samples: int = 0
    calls: int = 0
    calls_saved: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    stopped: str | None = None
    plan: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    waited: float = 0.0
    lines: list[str] = field(default_factory=list)


def run_generate(settings: GenerateSettings) -> GenerateResult:
    """Draw what is missing of an output. In a job of several processes each calls this.

    Raises:
        ValueError, OSError: refused, and nothing has been written; on ranks other than the main one: SystemExit.
    """
    end_with_launcher()
    accelerator = _accelerator(settings)
    try:
        with warnings.catch_warnings():  # a block with such samples is reported as failed
            warnings.filterwarnings("ignore", "the velocity was not finite", RuntimeWarning)
            job = _Job(settings, accelerator)
            try:
                return dataclasses.replace(job.run(), main=accelerator.is_main_process)
            finally:
                job.claims.close()
    except (ValueError, OSError):
        if accelerator.is_main_process:
            raise
        sys.exit(2)  # the main rank says why


def _accelerator(settings: GenerateSettings) -> Accelerator:
    logs = None if settings.log_with is None or "://" in settings.output else f"{settings.output}/{PRIVATE}/logs"
    handler = InitProcessGroupKwargs(timeout=TIMEOUT)
    cpu = not torch.accelerator.is_available()  # else accelerate takes several processes without a GPU for one each
    for plugin in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):  # of the user's training; drawing needs none
        os.environ.pop(f"ACCELERATE_USE_{plugin}", None)
    try:
        accelerator = Accelerator(
            cpu=cpu, mixed_precision="no", log_with=settings.log_with, project_dir=logs, kwargs_handlers=[handler]
        )
    except ValueError as error:
        raise ValueError(f"log_with is {settings.log_with!r}: {error}") from error
    if settings.log_with is not None and not accelerator.log_with:
        raise ValueError(f"log_with is {settings.log_with!r}, whose package is not installed; install it.")
    return accelerator


class _Job:
    """One process's view of the job."""

    def __init__(self, settings: GenerateSettings, accelerator: Accelerator) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.detector = None if settings.detector is None else MemorizationDetector.load(settings.detector)
        self.store = Store(settings.output or "memory://dry-run")
        self.ledger, self.claims = Ledger(self.store), Claims(self.store)
        if settings.push_to_hub is not None:
            check_hub(settings, self.store)
        self._on_main(lambda: find_model(settings.model))
        with accelerator.local_main_process_first():  # other machines download for themselves
            self.folder = find_model(settings.model)
        self.prompts = read_prompts(settings, num_classes(self.folder))
        self.columns = column_types(self.prompts)
        check_gaps(self.columns, [prompt.columns for prompt in self.prompts], settings.format)
        self.plan = Plan.of(settings, len(self.prompts))

    def run(self) -> GenerateResult:
        manifest, before = self._on_main(self._compare)
        if before is not None and not before.missing and not before.damaged and not self.settings.dry_run:
            return self._on_main(lambda: self._finish(manifest, GenerateResult(True), self._assembled()))
        self.model = Sampler(self.folder, self.settings, self.accelerator.device, self.settings.shaping)
        self.selector = Selector(self.model, self.settings) if self.settings.keep_top is not None else None
        self.guard = Guard(self.model, self.settings, self.detector) if self.detector is not None else None
        self.rows = Rows(self.settings, self.prompts, self.columns, self.model.id2label, self.model.argument("guidance_scale"))
        plan = self._on_main(lambda: self._try(manifest, before))
        if self.settings.dry_run:
            return GenerateResult(True, plan=plan)
        self.claims.open()
        run_name, done = self._on_main(lambda: self._begin(manifest, before))
        result = self._draw(run_name, done)
        try:
            self.accelerator.wait_for_everyone()
        except RuntimeError as error:
            raise OSError("another process of this job has ended before its time; the same command resumes.") from error
        result.failed = self.ledger.failures(run_name)
        return self._on_main(lambda: self._finish(manifest, result))

    def _on_main(self, work: Callable[[], T]) -> T:
        """The result of ``work``, done by the main rank alone; or its error, raised by all."""
        outcome: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                outcome[0] = work()
            except (ValueError, OSError) as error:
                outcome[1] = error
        if self.accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _compare(self) -> tuple[Manifest, Inspection | None]:
        """The manifest of this job, and what an earlier run has left.

        Raises:
            ValueError: the output was made otherwise, or the folder holds something else.
        """
        hashes = {"prompts": prompts_hash(self.prompts), "weights": fingerprint(self.folder)}
        if self.detector is not None:
            hashes["detector"] = self.detector.digest
        versions = {"diffusers_kts": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
        device = {"device": self.accelerator.device.type, "threads": torch.get_num_threads()}
        noted = {"model": self.settings.model} | versions | {"python": platform.python_version()} | device
        manifest = Manifest(self.settings.identity | hashes, self.plan, noted)
        there = self.ledger.manifest()
        if there is not None:
            self._check_same(there, manifest)
            return manifest, inspect_output(self.store, self.ledger, self.settings.recheck)
        held = sorted({name.partition("/")[0] for name in self.store.sizes()} - {PRIVATE})
        if held or self.ledger.committed():
            raise ValueError(
                f"{self.store.url} is not empty (it holds {[*held, PRIVATE][0]}) and is no output of kts generate; give "
                "another --output."
            )
        return manifest, None

    def _check_same(self, there: Manifest, manifest: Manifest) -> None:
        different = there.differences(manifest)
        if there.identity.get("prompts") != manifest.identity["prompts"]:
            different.append(first_difference(self.ledger.prompts(), self.prompts))
        if different:
            raise ValueError(
                f"{self.store.url} was made with other settings: {'; '.join(different)}. Give another --output, or those "
                "settings."
            )

    def _try(self, manifest: Manifest, before: Inspection | None) -> list[str]:
        """Check prompts, model and space; the plan, in words.

        Raises:
            ValueError: it would not run. OSError: the disk is too full.
        """
        s, plan = self.settings, self.plan
        self.model.check_prompts(self.prompts)
        if self.detector is not None:
            guidance = self.model.argument("guidance_scale")
            self.detector.check(model=manifest.identity["weights"], guidance_scale=guidance)
        batch = plan.block(0).batches[0]
        prompts = [self.prompts[i // s.images_per_prompt] for i in batch]
        drawn = (self.selector or self.guard or self.model).trial(batch, prompts)
        check_packages(s, video=drawn.pixels.ndim == 5)
        trial = Sample(np.nan_to_num(drawn.pixels[0]), self.rows(batch, drawn.trace)[0])
        size = sum(map(len, encode(trial, s.video, s.fps)))
        kept = len(self.prompts) * (s.keep_top or s.images_per_prompt)
        left = kept if before is None else math.ceil(kept * (1 - len(before.good) / len(plan)))
        free = self.store.free_space()
        if free is not None and left * size > free:
            raise OSError(f"{left} samples need about {_bytes(left * size)}, but {self.store.url} has {_bytes(free)} free.")
        if s.push_to_hub is not None:
            reach(s.push_to_hub)
        shape = " x ".join(map(str, drawn.pixels.shape[1:-1]))
        lines = [
            f"{self.model.name} with {drawn.trace.settings['scheduler']}, {self.accelerator.num_processes} process(es).",
            f"{plan.num_samples} samples of {shape} pixels: {len(self.prompts)} prompts, {s.images_per_prompt} each"
            + (f", {s.keep_top} kept." if s.keep_top else "."),
            f"{len(plan)} blocks of {plan.block_size} samples, {plan.batch_size} in a call.",
            f"At most about {_bytes(kept * size)} as {s.format}, judged by one picture of noise.",
        ]
        return lines if before is None else [*lines, f"{len(before.good)} blocks are there already."]

    def _begin(self, manifest: Manifest, before: Inspection | None) -> tuple[str, set[int]]:
        """The first writes: the manifest, unless another run was faster. A name for this run; blocks that are there."""
        with self.claims.alone(len(self.plan)):  # a number that no block has
            there = self.ledger.manifest()
            if there is not None:
                self._check_same(there, manifest)
            else:
                self.ledger.begin(manifest, b"".join(prompt_lines(self.prompts)))
            if not self.store.exists(CONFIG):
                self.store.write(CONFIG, self.settings.to_yaml().encode())
        for number in before.damaged if before is not None else ():
            self._revoke(number)
        return uuid.uuid4().hex, before.good if before is not None else set()

    def _revoke(self, number: int) -> None:
        """A damaged block counts as missing, unless another process is drawing it, or has done so since it was looked at."""
        if self.claims.take(number):
            try:
                if is_damaged(self.store, self.ledger, number, self.settings.recheck):
                    self.ledger.revoke(number)
            finally:
                self.claims.release(number)

    def _draw(self, run_name: str, done: set[int]) -> GenerateResult:
        accelerator, began, used = self.accelerator, time.monotonic(), time.process_time()
        progress = Progress(self.plan.num_samples, self.plan.samples(done), accelerator)
        if self.settings.log_with is not None:
            accelerator.init_trackers("kts-generate", config=self.settings.flat())
        drawing = Drawing(
            self.settings,
            self.plan,
            self.prompts,
            self.columns,
            self.model,
            self.selector,
            self.guard,
            self.rows,
            self.store,
            self.ledger,
            self.claims,
            progress,
            run_name,
        )
        try:
            drawing.run(done, accelerator.process_index, accelerator.num_processes)
        finally:
            progress.close()
            if self.settings.log_with is not None:
                accelerator.end_training()
        return GenerateResult(
            complete=False,
            stopped=drawing.stopped,
            seconds=time.monotonic() - began,
            cpu_seconds=time.process_time() - used,
            waited=drawing.waited,
        )

    def _assembled(self) -> dict[str, int] | None:
        return assembled(self.store, self.settings.recheck)

    def _finish(self, manifest: Manifest, result: GenerateResult, sums: dict[str, int] | None = None) -> GenerateResult:
        """Put together what needs all blocks, unless its ``sums`` say that this has been done, upload, and report."""
        there, s = self.ledger.committed(), self.settings
        result.complete = len(there) == len(self.plan)
        if sums is None:
            self.claims.open()
            with self.claims.alone(len(self.plan)):
                new = result.complete and not self.store.exists("README.md")
                card = partial(write_card, self.store, manifest) if new else None
                sums = assemble(self.store, self.ledger, s.format, s.keep_top is not None, there, card)
                if result.complete:
                    self.store.clear_partial()
        result.samples, result.calls, result.calls_saved = sums["samples"], sums["calls"], sums["calls_saved"]
        result.lines = self._report(result, len(there))
        if result.complete and s.push_to_hub is not None:
            result.lines.append(f"Uploaded to {push_to_hub(s, self.store, manifest, sums)}.")
        return result

    def _report(self, result: GenerateResult, there: int) -> list[str]:
        lines = [f"Failed: {block_name(self.plan.block(n))}: {reason}." for n, reason in result.failed.items()]
        if result.stopped is not None:
            lines.append(f"Stopped: {result.stopped}.")
        if result.calls_saved:
            share = result.calls_saved / (result.calls + result.calls_saved)
            lines.append(f"Screening saved {result.calls_saved} network calls of samples, {share:.0%}.")
        if result.complete:
            return [*lines, f"Complete: {result.samples} samples in {self.store.url}."]
        missing = len(self.plan) - there
        part = "" if self.settings.shard is None else f" (this was part {self.settings.shard})"
        return [
            *lines,
            f"Not complete{part}: {missing} of {len(self.plan)} blocks are missing, {result.samples} samples are in "
            f"{self.store.url}; the same command resumes.",
        ]


def _bytes(size: float) -> str:
    return tqdm.format_sizeof(size, "B")
