"""Running times measured in turn within one process, their ratios, and the limits of the machine they were measured on.

    stopwatch = race({"stock": stock, "ours": ours})
    stopwatch.ratio("ours", "stock").median

Times of separate runs compare badly, since a shared machine changes its speed from minute to minute. Here every round times
every contender, each round another one first, and a ratio is the median of the ratios within the rounds. Its interval is that
of a median, by order statistics: it says how far the rounds scatter, not what another machine would measure.
"""

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from scipy.stats import quantile_test

from benchmarks.report import environment, write_json

RESULTS = Path(__file__).parents[1]
ROUNDS = 31


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios within the rounds, and its 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Race:
    """Seconds per call of every contender, one for each round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, ours: str, theirs: str) -> Ratio:
        ratios = [a / b for a, b in zip(self.seconds[ours], self.seconds[theirs], strict=True)]
        interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
        return Ratio(statistics.median(ratios), float(interval.low), float(interval.high))

    def to_dict(self, ours: str, theirs: str) -> dict[str, Any]:
        """For a result file: median microseconds of every contender, and the ratio of the two that are compared."""
        medians = {name: self.median(name) * 1e6 for name in self.seconds}
        rounds = len(self.seconds[ours])
        return {"microseconds": medians, "ratio": asdict(self.ratio(ours, theirs)), "rounds": rounds}


def race(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS, at_least: float = 0.02, device: str = "cpu"
) -> Race:
    """Time the contenders in turn.

    Args:
        contenders: calls by name; each is made twice beforehand, to warm up.
        rounds (`int`): how often each is timed; six or more.
        at_least (`float`): seconds of one timing; short calls are repeated until they take as long.
        device (`str`): a "cuda" one is waited for at both ends of a timing.

    Raises:
        ValueError: too few rounds.
    """
    if rounds < 6:
        raise ValueError(f"rounds is {rounds}; the interval of a median needs six or more.")

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    def timed(call: Callable[[], Any], calls: int) -> float:
        wait()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - began) / calls

    names, seconds = list(contenders), {name: [] for name in contenders}
    calls = {}
    for name, call in contenders.items():
        timed(call, 1)
        calls[name] = max(1, math.ceil(at_least / timed(call, 1)))
    collecting = gc.isenabled()
    gc.disable()  # as timeit does: garbage of one contender must not be collected in the time of another
    try:
        for i in range(rounds):
            gc.collect()
            first = i % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(timed(contenders[name], calls[name]))
    finally:
        if collecting:
            gc.enable()
    return Race(seconds)


def measure(name: str, goal: float, ratio: Mapping[str, float], limit: str, at_least: bool = False) -> dict[str, Any]:
    """A row of the table of ``performance_table.py``.

    Args:
        name (`str`): what is measured.
        goal (`float`): the most that reaches it, or with ``at_least`` the least.
        ratio: of `Race.to_dict`.
        limit (`str`): what the ratio cannot pass, and why.
        at_least (`bool`): whether more is better.
    """
    reached = ratio["median"] >= goal if at_least else ratio["median"] <= goal
    return {"measure": name, "goal": goal, "at_least": at_least, **ratio, "limit": limit, "reached": reached}


def bandwidth(device: str = "cpu", numbers: int = 2**25) -> dict[str, float]:
    """Bytes a second of the memory, best of the rounds as in STREAM: ``copy`` reads one array and writes one, ``triad``
    ``a = b + s c``, the form of an Euler step, reads two and writes one. Arrays of ``numbers`` float32 exceed the caches."""
    a, b, c = (torch.ones(numbers, device=device) for _ in range(3))
    result = race({"copy": lambda: a.copy_(b), "triad": lambda: torch.add(b, c, alpha=0.5, out=a)}, rounds=9, device=device)
    moved = {"copy": 2 * 4 * numbers, "triad": 3 * 4 * numbers}
    return {name: moved[name] / min(times) for name, times in result.seconds.items()}


def matrix_flops(device: str = "cpu", n: int = 2048) -> float:
    """Float32 operations a second of a matrix product (n, n) @ (n, n), best of the rounds."""
    x, y = torch.ones(n, n, device=device), torch.ones(n, n, device=device)
    return 2 * n**3 / min(race({"product": lambda: x @ y}, rounds=9, device=device).seconds["product"])


def machine(began: float, device: str = "cpu") -> dict[str, Any]:
    """Where and when a result was measured; ``began`` as `time.time` gave it."""
    return environment(began) | {
        "accelerator": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": os.getloadavg(),
    }


def write(name: str, result: dict[str, Any], began: float, device: str = "cpu", output: Path = RESULTS) -> None:
    """``results/<name>.json``, with the machine."""
    write_json(output, name, result | {"environment": machine(began, device)})


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() says x86_64 there, or nothing
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
