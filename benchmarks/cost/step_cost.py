"""What shaping and measuring cost beside the stock scheduler: a step, and a whole pipeline.

python -m benchmarks.cost.step_cost                      # steps, two minutes
python -m benchmarks.cost.step_cost --device cuda        # the same on a GPU, fused steps included
python -m benchmarks.cost.step_cost --pipeline           # also a transformer as wide as SD3-medium, ten minutes on two cores

Contenders take turns within one run (``stopwatch.py``); ratios are medians. Times depend on what else the machine does: run it
on a quiet one. Results go to ``benchmarks/results/step_cost.json``, those of a GPU to ``step_cost_cuda.json``.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from benchmarks.cost import stopwatch
from benchmarks.cost.stopwatch import race
from diffusers_kts import PRESETS, KPEMonitorPipeline, KTSFlowMatchScheduler
from diffusers_kts.euler_step import euler_step
from diffusers_kts.kpe.recording import recording
from diffusers_kts.kpe.sums import squared_norm

LATENTS = {"SD3-1024": (16, 128, 128), "FLUX-1024": (4096, 64), "Wan-480p x 21": (16, 21, 60, 104)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS = 1000  # between two calls of set_timesteps, which the steps shall not be charged with
SHAPED = PRESETS["balanced"]


class Sampler:
    """A pipeline without a network, for the monitor."""

    record_turn = False

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def stepper(scheduler: Any, sample: torch.Tensor, v: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One step of a run that begins anew where it ends."""
    timesteps: list[torch.Tensor] = []

    def step() -> torch.Tensor:
        if not timesteps:
            scheduler.set_timesteps(STEPS, device=sample.device)
            scheduler.set_begin_index(0)
            timesteps.extend(reversed(scheduler.timesteps.unbind()))
        return scheduler.step(v, timesteps.pop(), sample, return_dict=False)[0]

    return step


def steps(shape: tuple[int, ...], dtype: torch.dtype, device: str, rounds: int, fused: bool) -> dict[str, Any]:
    sample, v = torch.randn(shape, device=device).to(dtype), torch.randn(shape, device=device).to(dtype)
    monitored = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedulers = {
        "stock": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "shaped and measured": KTSFlowMatchScheduler(shift=3.0, **SHAPED),
        "off, measured": KTSFlowMatchScheduler(shift=3.0, **PRESETS["off"]),
        "stock, measured": monitored,
    }
    if fused:
        schedulers["shaped and measured, fused"] = KTSFlowMatchScheduler(shift=3.0, **SHAPED)
        schedulers["shaped and measured, fused"].fused = True
    parts = {"its displacement": lambda: euler_step(sample, v, -0.03).to(dtype), "its energy": lambda: squared_norm(v)}
    with torch.no_grad(), recording(Sampler(monitored)):
        contenders = {name: stepper(scheduler, sample, v) for name, scheduler in schedulers.items()}
        result = race(contenders | parts, rounds=rounds, device=device)
    microseconds = {name: result.median(name) * 1e6 for name in result.seconds}
    left = microseconds["shaped and measured"] - sum(microseconds[name] for name in parts)
    return {
        "microseconds": microseconds,
        "ratio_to_stock": {name: asdict(result.ratio(name, "stock")) for name in schedulers if name != "stock"},
        "microseconds_of_python_around_the_parts": left,
        "least_bytes": 3 * sample.numel() * sample.element_size(),
    }


def pipeline(device: str, rounds: int, layers: int = 1, size: int = 256) -> dict[str, Any]:
    """28 steps of SD3-medium's width, with few of its 24 layers: a smaller network hides less of what the steps cost."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=128,
        in_channels=16,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=192,
    ).to(device)
    none = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    plain = StableDiffusion3Pipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **none)
    shaped = KTSFlowMatchScheduler.from_config(plain.scheduler.config, **SHAPED)
    both = KPEMonitorPipeline.from_pipe(plain, scheduler=shaped)
    for pipe in (plain, both):
        pipe.set_progress_bar_config(disable=True)
    prompt = {
        "prompt_embeds": torch.randn(1, 154, 4096, device=device),
        "pooled_prompt_embeds": torch.randn(1, 2048, device=device),
    }
    latents = torch.randn(1, 16, size // 8, size // 8, device=device)

    def call(pipe: Any) -> Callable[[], Any]:
        return lambda: pipe(
            **prompt,
            latents=latents,
            num_inference_steps=28,
            guidance_scale=1.0,
            height=size,
            width=size,
            output_type="latent",
        )

    result = race({"plain": call(plain), "monitored and shaped": call(both)}, rounds=rounds, device=device)
    return {
        "layers": layers,
        "size": size,
        "steps": 28,
        "seconds": {name: result.median(name) for name in result.seconds},
        "ratio_to_plain": asdict(result.ratio("monitored and shaped", "plain")),
        "rounds": rounds,
    }


if __name__ == "__main__":
    began = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument(
        "--fused", action="store_true", help="also compiled steps, as on CUDA; compiling takes a minute on a CPU"
    )
    parser.add_argument("--pipeline", action="store_true")
    parser.add_argument("--pipeline-rounds", type=int, default=6)
    parser.add_argument("--output", type=stopwatch.Path, default=stopwatch.RESULTS, help="folder of results/")
    options = parser.parse_args()
    fused = options.fused or options.device.startswith("cuda")
    measured: dict[str, Any] = {"steps": {}}
    for name, shape in LATENTS.items():
        for batch in (1, 8):
            for dtype in DTYPES:
                row = steps((batch, *shape), DTYPES[dtype], options.device, options.rounds, fused)
                measured["steps"][f"{name}, batch {batch}, {dtype}"] = row
                ratios = {contender: round(ratio["median"], 2) for contender, ratio in row["ratio_to_stock"].items()}
                print(f"{name} {batch} {dtype}: stock {row['microseconds']['stock']:.0f} us, ratios {ratios}", flush=True)
    if options.pipeline:
        measured["pipeline"] = pipeline(options.device, options.pipeline_rounds)
    measured["bytes_per_second"] = limits = stopwatch.bandwidth(options.device)
    for row in measured["steps"].values():
        row["microseconds_at_the_limit"] = row["least_bytes"] / limits["triad"] * 1e6
    name = "step_cost_cuda" if options.device.startswith("cuda") else "step_cost"
    stopwatch.write(name, measured, began, options.device, options.output)
