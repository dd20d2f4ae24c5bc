"""A step on the GPU: KTS + KPE beside the stock scheduler, eager, fused and in a CUDA graph.

For latents of SD3, FLUX, Qwen-Image and Wan, three dtypes and batches of 1, 4 and 16: microseconds, kernels launched, bytes
that the tensors read and written hold, peak memory, and whether anything waits for the device.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.profiler import ProfilerActivity, profile

from benchmarks.cost.step_cost import SHAPED, stepper
from benchmarks.cost.stopwatch import race
from benchmarks.counting import Traffic
from benchmarks.gpu.rows import Rows, parse_args, peak_gib
from diffusers_kts import KTSFlowMatchScheduler

LATENTS = {
    "SD3 1024": (16, 128, 128),
    "FLUX 1024": (4096, 64),
    "Qwen-Image 1328": (6889, 64),
    "Wan 480p x 21": (16, 21, 60, 104),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BATCHES = (1, 4, 16)
ROUNDS = 7


def graph_of(step: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """The step, captured; what it does on the host is done once."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def kernels(step: Callable[[], Any], device: str) -> int | None:
    """Launched by one step."""
    if device != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())


def waits(step: Callable[[], Any], device: str) -> str | None:
    """What a step waits for the device for; "" if for nothing."""
    if device != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def row(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Any]:
    sample, v = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    schedulers: dict[str, Any] = {
        "stock": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "shaped": KTSFlowMatchScheduler(shift=3.0, **SHAPED),
        "off": KTSFlowMatchScheduler(shift=3.0, alpha_0=0.0, beta_0=0.0),
        "fused": KTSFlowMatchScheduler(shift=3.0, **SHAPED),
    }
    schedulers["fused"].fused = True
    with torch.no_grad(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        steps: dict[str, Callable[[], Any]] = {name: stepper(one, sample, v) for name, one in schedulers.items()}
        counted = {}
        for name, step in steps.items():
            step()
            with Traffic() as traffic:
                if name != "fused":  # a compiled kernel has no operations to count
                    step()
            about = {"kernels": kernels(step, device), "waits": waits(step, device), "peak_gib": peak_gib(step, device)}
            counted[name] = about | ({"bytes": traffic.moved} if name != "fused" else {})
        if device == "cuda":
            steps |= {f"{name}, graph": graph_of(steps[name]) for name in ("stock", "shaped")}
        timed = race(steps, rounds=ROUNDS, at_least=0.002, device=device)
    return {
        "microseconds": {name: timed.median(name) * 1e6 for name in steps},
        "ratio_to_stock": {name: asdict(timed.ratio(name, "stock")) for name in steps if name != "stock"},
        "counted": counted,
        "warnings": sorted({str(one.message) for one in warned}),
    }


def main() -> None:
    options = parse_args(__doc__)
    rows = Rows(options)
    batches, dtypes = ((1,), ("bf16",)) if rows.smoke else (BATCHES, tuple(DTYPES))
    for batch in batches:
        for dtype in dtypes:
            for name, shape in list(LATENTS.items())[: 1 if rows.smoke else None]:
                small = tuple(min(n, 16) for n in shape) if rows.smoke else shape
                rows.make(f"{name}, batch {batch}, {dtype}", lambda s=(batch, *small), d=DTYPES[dtype]: row(s, d, rows.device))


if __name__ == "__main__":
    main()
