"""Rows of measurements that are on disk as soon as they are made."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import environment


def parse_args(description: str | None) -> argparse.Namespace:
    """The options that the parts have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--smoke", action="store_true", help="in miniature, on the CPU")
    parser.add_argument("--data", type=Path, help="emoji, for the training part; random pictures without")
    parser.add_argument("--seconds", type=float, default=90, help="until no further row is begun")
    return parser.parse_args()


class Rows:
    """Rows of a part, written after each; a row that fails holds its error, and the next is made all the same.

    Args:
        options: of `parse_args`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path = options.output
        self.smoke: bool = options.smoke
        self.device = "cpu" if options.smoke else "cuda"
        self.began = time.time()
        self.until = self.began + options.seconds
        self.rows: dict[str, Any] = {}
        self.write()

    def make(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """The row ``name``, unless the time is up."""
        if time.time() > self.until:
            row: dict[str, Any] = {"left_out": "no time was left"}
        else:
            began = time.time()
            try:
                row = work()
            except Exception as error:  # out of memory, a missing kernel, an older library: the reader shall see it
                row = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}
            row["seconds_of_this_row"] = round(time.time() - began, 2)
        self.rows[name] = row
        self.write()
        print(f"{name}: {json.dumps(row)}", flush=True)
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def write(self) -> None:
        named = torch.cuda.get_device_name() if self.device == "cuda" else "CPU (smoke)"
        about = environment(self.began) | {"accelerator": named, "smoke": self.smoke}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"rows": self.rows, "environment": about}, indent=1, allow_nan=False) + "\n")
        partial.replace(self.path)


def waited(device: str) -> float:
    """The time, once the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Callable[[], Any], device: str, times: int = 1) -> float:
    """Of one call, the mean of several."""
    began = waited(device)
    for _ in range(times):
        call()
    return (waited(device) - began) / times


def peak_gib(call: Callable[[], Any], device: str) -> float | None:
    """GiB of device memory that a call takes at most; None on the CPU."""
    if device != "cuda":
        call()
        return None
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30
