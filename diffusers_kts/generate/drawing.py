"""The loop of one process: take a block that nobody has, draw it, hand it to the writers, draw the next."""

import io
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import Any

import numpy as np

from ..kpe.trace import KPETrace
from ..sampling.prompts import Prompt
from ..sampling.sampler import Drawn, Sampler
from .formats import BlockWriter, block_writer, file_names
from .guard import Guard
from .ledger import Claims, Ledger, Record
from .media import NotFinite, Sample, encode, medium
from .plan import Block, Plan
from .progress import Progress
from .rows import Rows
from .selection import Selected, Selector
from .settings import GenerateSettings
from .storage import Store

GIVE_UP_AFTER = 5  # blocks in a row at which the pipeline raised
BUSY_WAIT = 0.2  # seconds before another process's block is looked at again


class Writers:
    """Threads that encode and write. At most ``threads + 1`` batches wait, so memory does not grow when they are slow."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kts-writer")
        self._room = BoundedSemaphore(threads + 1)
        self.waited = 0.0

    def batch(self, work: Any, *args: Any) -> "Future[None]":
        """Encode and write a batch; waits for room."""
        began = time.perf_counter()
        self._room.acquire()
        self.waited += time.perf_counter() - began
        future = self._pool.submit(work, *args)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def last(self, work: Any, *args: Any) -> "Future[None]":
        """The end of a block, which holds no pixels."""
        return self._pool.submit(work, *args)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


@dataclass
class _Open:
    """A block between its first batch and its commit; its batches are encoded at once and written in order."""

    block: Block
    writer: BlockWriter
    record: Record
    traces: list[tuple[list[int], KPETrace]] = field(default_factory=list)
    previous: "Future[None] | None" = None


@dataclass
class Drawing:
    """Draws the blocks of one rank, then those that other ranks have left.

    Attributes:
        run_name: of the job, the same on all its ranks. stopped: why drawing ended early, or None.
        waited: seconds in which drawing stood still because the writers were behind.
    """

    settings: GenerateSettings
    plan: Plan
    prompts: list[Prompt]
    columns: dict[str, type]
    model: Sampler
    selector: Selector | None
    guard: Guard | None
    rows: Rows
    store: Store
    ledger: Ledger
    claims: Claims
    progress: Progress
    run_name: str
    stopped: str | None = None
    waited: float = 0.0
    _errors_in_a_row: int = 0

    def run(self, done: set[int], rank: int, world: int) -> None:
        """Draw every block that is not in ``done`` and that no other process draws; returns when none is left."""
        self.writers = Writers(self.settings.writers)
        self._look_for = 0.0
        try:
            waiting = [n for n in self.plan.share(self.settings.part, rank, world, self.claims.shared) if n not in done]
            while waiting and self.stopped is None:
                busy = [number for number in waiting if self.stopped is None and not self._attempt(number)]
                if busy:
                    time.sleep(BUSY_WAIT)
                waiting = busy
                self._report()
        finally:
            self.writers.close()
            self.waited = self.writers.waited
            self._report(now=True)

    def _attempt(self, number: int) -> bool:
        """Draw a block unless it is there; False while another process has it."""
        if not self.claims.take(number):
            return False
        if self.ledger.is_committed(number) or self.ledger.failure(number, self.run_name) is not None:
            self.claims.release(number)
            return True
        block = self.plan.block(number)
        try:
            opened = _Open(block, block_writer(self.settings.format, self.store, block, self.columns), Record(number))
        except OSError as error:
            self._stop(error)
            return True
        try:
            for indices, drawn, more in self._draw(block, opened.record):
                rows = [row | own for row, own in zip(self.rows(indices, drawn.trace), more, strict=True)]
                samples = [Sample(pixels, row) for pixels, row in zip(drawn.pixels, rows, strict=True)]
                self.progress.drew(drawn.trace.per_dim.tolist())
                if self.settings.traces:
                    opened.traces.append((indices, drawn.trace))
                opened.previous = self.writers.batch(self._write, opened, samples, opened.previous)
            self._errors_in_a_row = 0
            self.writers.last(self._commit, opened)
        except NotFinite as error:
            self.writers.last(self._abandon, opened, str(error))
        except Exception as error:  # a batch that the pipeline cannot draw costs its block only
            self._errors_in_a_row += 1
            if self._errors_in_a_row == GIVE_UP_AFTER:
                self.stopped = f"{GIVE_UP_AFTER} blocks in a row could not be drawn, the last: {error}"
            self.writers.last(self._abandon, opened, " ".join(f"{type(error).__name__}: {error}".split()))
        self._report()
        return True

    def _draw(self, block: Block, record: Record) -> Iterator[tuple[list[int], Drawn, list[dict[str, Any]]]]:
        """The samples of a block to keep, batch by batch: indices, pixels and energies, further columns."""
        prompts = [self.prompts[i // self.plan.images_per_prompt] for i in range(block.start, block.stop)]
        if self.selector is not None:
            selected: Selected = self.selector(block, prompts)
            record.candidates, record.calls, record.calls_saved = selected.candidates, selected.calls, selected.calls_saved
            yield selected.indices, selected.drawn, [{"rank": place} for place in selected.ranks]
            return
        for batch in block.batches:
            own = prompts[batch.start - block.start : batch.stop - block.start]
            drawn, redraws = self.guard(batch, own) if self.guard else (self.model.draw(batch, own), [0] * len(batch))
            bad = (drawn.trace.nonfinite >= 0).nonzero().flatten().tolist()
            if bad:
                first = ", ".join(f"sample {batch[i]} from step {int(drawn.trace.nonfinite[i])}" for i in bad[:8])
                raise NotFinite(f"the velocity was not finite for {first}")
            record.calls += (len(batch) + sum(redraws)) * drawn.trace.num_steps
            yield list(batch), drawn, self.guard.columns(batch, redraws) if self.guard else [{} for _ in batch]

    def _write(self, opened: _Open, samples: list[Sample], previous: "Future[None] | None") -> None:
        """On a writer: encode at once, write after the batch before."""
        encoded = []
        for sample in samples:
            parts = encode(sample, self.settings.video, self.settings.fps)
            kind = medium(sample.pixels, self.settings.video)
            names = file_names(sample.row["index"], kind, self.settings.format, len(parts))
            for i, (name, data) in enumerate(zip(names, parts, strict=True)):
                frame = {"frame": i} if kind == "frames" else {}
                encoded.append(({"file_name": name} | frame | sample.row, data))
        if previous is not None:
            previous.result()
        opened.writer.add(encoded)
        opened.record.rows += [row for row, _ in encoded]
        opened.record.samples += len(samples)

    def _commit(self, opened: _Open) -> None:
        """On a writer: the end of a block. Its record is the last thing written."""
        try:
            if opened.previous is not None:
                opened.previous.result()
            files = opened.writer.finish()
            if opened.traces:
                name = f"traces/{opened.block.number:06d}.parquet"
                files[name] = self.store.write(name, _table(opened.traces))
            opened.record.files = files
            self.ledger.commit(opened.record)
        except OSError as error:
            opened.writer.discard()
            self._stop(error)
        except Exception as error:
            self._abandon(opened, str(error) if isinstance(error, NotFinite) else f"{type(error).__name__}: {error}")
        finally:
            self.claims.release(opened.block.number)

    def _abandon(self, opened: _Open, reason: str) -> None:
        """On a writer: leave nothing of a block but the note why."""
        if opened.previous is not None:
            with suppress(Exception):
                opened.previous.result()
        opened.writer.discard()
        with suppress(OSError):
            self.ledger.fail(opened.block.number, self.run_name, reason)
        self.claims.release(opened.block.number)

    def _stop(self, error: OSError) -> None:
        """Every further block would fail in the same way."""
        self.stopped = f"cannot write to {self.store.url} ({error.strerror or error})"

    def _report(self, now: bool = False) -> None:
        """Count what all ranks have done, so seldom that looking costs a hundredth of the time."""
        if not self.progress.show or (time.monotonic() < self._look_for and not now):
            return
        began = time.monotonic()
        self.progress.update(self.plan.samples(self.ledger.committed()))
        self._look_for = time.monotonic() + max(1.0, 100 * (time.monotonic() - began))


def _table(traces: list[tuple[list[int], KPETrace]]) -> bytes:
    """A row per sample and step, as Parquet."""
    import pandas as pd

    tables = []
    for indices, trace in traces:
        table = trace.to_pandas(per_step=True)
        table.insert(0, "index", np.asarray(indices)[table.pop("sample").to_numpy()])
        tables.append(table)
    buffer = io.BytesIO()
    pd.concat(tables).to_parquet(buffer, index=False)
    return buffer.getvalue()
