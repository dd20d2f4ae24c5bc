"""One account of the whole job, on the main rank: a bar on a terminal, else a line now and then."""

import sys
import time
from typing import TextIO

from accelerate import Accelerator
from tqdm import tqdm

LINE_EVERY = 30.0  # seconds
LOG_EVERY = 10.0  # seconds between two entries of a tracker


class Progress:
    """Counts samples over all ranks.

    Args:
        total (`int`): samples of the job. done (`int`): those an earlier run has left.
        accelerator (`Accelerator`): shows on its main rank, and logs to its trackers.
    """

    def __init__(self, total: int, done: int, accelerator: Accelerator, file: TextIO | None = None) -> None:
        self.accelerator, self.file = accelerator, file or sys.stderr
        self.total, self.first, self.done, self.show = total, done, done, accelerator.is_main_process
        self.energy, self.measured = 0.0, 0
        self.began = self.said = time.monotonic()
        self.logged = -LOG_EVERY
        self.bar: tqdm | None = None
        if self.show and self.file.isatty():
            self.bar = tqdm(total=total, initial=done, unit="image", file=self.file, dynamic_ncols=True)

    @property
    def mean_energy(self) -> float | None:
        """Path energy per dimension, mean over the samples that this process has drawn; None before the first."""
        return self.energy / self.measured if self.measured else None

    @property
    def rate(self) -> float:
        """Samples a second, over all ranks, in this run."""
        return (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)

    def drew(self, per_dim: list[float]) -> None:
        self.energy += sum(per_dim)
        self.measured += len(per_dim)

    def update(self, done: int) -> None:
        """``done`` samples are there now, those of all ranks and earlier runs together."""
        self.done = done
        if self.bar is not None:
            self.bar.set_postfix_str(self._energy(), refresh=False)
            self.bar.update(done - self.bar.n)
        elif self.show and time.monotonic() - self.said >= LINE_EVERY:
            self.line()
        if time.monotonic() - self.logged >= LOG_EVERY:
            self._log()

    def _log(self) -> None:
        self.logged = time.monotonic()
        values = {"images": self.done, "images_per_second": self.rate}
        energy = {} if self.mean_energy is None else {"kpe_per_dim": self.mean_energy}
        self.accelerator.log(values | energy, step=self.done)

    def line(self) -> None:
        self.said = time.monotonic()
        left = (self.total - self.done) / self.rate if self.rate else float("inf")
        eta = tqdm.format_interval(int(left)) if left != float("inf") else "?"
        energy = f", {self._energy()}" if self.measured else ""
        print(f"{self.done}/{self.total} images, {self.rate:.3g} images/s, {eta} left{energy}", file=self.file, flush=True)

    def close(self) -> None:
        self._log()
        if self.bar is not None:
            self.bar.close()
        elif self.show:
            self.line()

    def _energy(self) -> str:
        return "" if self.mean_energy is None else f"mean KPE/dim {self.mean_energy:.4g}"
