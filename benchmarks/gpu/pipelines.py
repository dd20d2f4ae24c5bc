"""Whole pipelines with random weights at real size: plain, shaped, monitored, fitted.

SD3.5-medium, Wan 2.1 1.3B and FLUX.1 (12B), bf16, prompts given as embeddings, latents not decoded. Seconds, peak memory,
whether latents stay bit-equal when monitored, and graph breaks that monitoring adds under ``torch.compile``.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from benchmarks.gpu.rows import Rows, parse_args, peak_gib, seconds
from diffusers_kts import PRESETS, KPEMonitorPipeline, KTSFlowMatchScheduler
from diffusers_kts.fit.teacher import solver

NO_TEXT = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def random_weights(kind: Any, device: str, **config: Any) -> Any:
    """A model made on the device, in bf16, with small random weights."""
    with torch.device("meta"):
        model = kind(**config)
    model = model.to(torch.bfloat16).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02, generator=generator)
    return model


def sd3(device: str, smoke: bool) -> tuple[Any, dict[str, Any]]:
    size: dict[str, Any] = {"num_layers": 24, "num_attention_heads": 24, "dual_attention_layers": tuple(range(13))}
    if smoke:
        size = {"num_layers": 2, "num_attention_heads": 2, "dual_attention_layers": (0,)}
    width = 64 * size["num_attention_heads"]
    transformer = random_weights(
        SD3Transformer2DModel, device, sample_size=128, in_channels=16, attention_head_dim=64, joint_attention_dim=4096,
        caption_projection_dim=width, pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=384, qk_norm="rms_norm",
        **size,
    )  # fmt: skip
    none = dict.fromkeys(("vae", *NO_TEXT, "text_encoder_3", "tokenizer_3"))
    pipe = StableDiffusion3Pipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **none)
    side, steps = (64, 2) if smoke else (1024, 28)
    call = {"prompt_embeds": (1, 154, 4096), "pooled_prompt_embeds": (1, 2048)}
    return pipe, _embedded(call, device) | {"height": side, "width": side, "num_inference_steps": steps, "guidance_scale": 1.0}


def flux(device: str, smoke: bool) -> tuple[Any, dict[str, Any]]:
    size: dict[str, Any] = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "guidance_embeds": True}
    if smoke:
        size = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "guidance_embeds": True}
    transformer = random_weights(FluxTransformer2DModel, device, **size)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = FluxPipeline(transformer=transformer, scheduler=scheduler, vae=None, **dict.fromkeys(NO_TEXT))
    side, steps = (64, 2) if smoke else (1024, 10)
    call = {"prompt_embeds": (1, 512, 4096), "pooled_prompt_embeds": (1, 768)}
    return pipe, _embedded(call, device) | {"height": side, "width": side, "num_inference_steps": steps}


def wan(device: str, smoke: bool) -> tuple[Any, dict[str, Any]]:
    size: dict[str, Any] = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    vae: dict[str, Any] = {}
    if smoke:
        size, vae = {"num_attention_heads": 2, "num_layers": 1, "ffn_dim": 64}, {"base_dim": 4, "dim_mult": [1, 1, 1, 1]}
    pipe = WanPipeline(
        transformer=random_weights(WanTransformer3DModel, device, **size), vae=random_weights(AutoencoderKLWan, device, **vae),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=None, tokenizer=None,
    )  # fmt: skip
    shape = {"height": 64, "width": 64, "num_frames": 5} if smoke else {"height": 480, "width": 832, "num_frames": 33}
    call = _embedded({"prompt_embeds": (1, 512, 4096)}, device)
    return pipe, call | shape | {"num_inference_steps": 2 if smoke else 5, "guidance_scale": 1.0}


def _embedded(shapes: dict[str, tuple[int, ...]], device: str) -> dict[str, Any]:
    return {name: torch.randn(shape, device=device, dtype=torch.bfloat16) for name, shape in shapes.items()}


def measured(build: Callable[[str, bool], tuple[Any, dict[str, Any]]], rows: Rows) -> dict[str, Any]:
    device = rows.device
    pipe, arguments = build(device, rows.smoke)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe.scheduler
    shaped = KTSFlowMatchScheduler.from_config(stock.config, **PRESETS["balanced"])
    steps = arguments["num_inference_steps"]
    # a fit's cost does not depend on its numbers: an even grid, and the mean of the last four velocities
    fitted = solver(stock, [i / steps for i in range(steps + 1)], [[1 / min(i + 1, 4)] * min(i + 1, 4) for i in range(steps)])
    monitored = KPEMonitorPipeline.from_pipe(pipe)
    monitored.set_progress_bar_config(disable=True)

    def call(which: Any, scheduler: Any) -> Callable[[], torch.Tensor]:
        def once() -> torch.Tensor:
            which.scheduler = scheduler
            generator = torch.Generator(device).manual_seed(0)
            return which(**arguments, generator=generator, output_type="latent", return_dict=False)[0]

        return once

    calls = {
        "plain": call(pipe, stock), "shaped": call(pipe, shaped), "fitted": call(pipe, fitted),
        "monitored": call(monitored, stock),
    }  # fmt: skip
    calls["plain"]()  # warms up
    latents = {name: once() for name, once in calls.items()}
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "steps": steps,
        "seconds": {name: seconds(once, device) for name, once in calls.items()},
        "peak_gib": {name: peak_gib(once, device) for name, once in calls.items()},
        "bit_equal_when_monitored": torch.equal(latents["plain"], latents["monitored"]),
        "shaping_acts": not torch.equal(latents["plain"], latents["shaped"]),
    }
    return found


def graph_breaks(rows: Rows) -> dict[str, Any]:
    """Of a compiled transformer in its pipeline, plain and monitored; and whether compiled latents stay bit-equal."""
    import torch._dynamo as dynamo

    pipe, arguments = sd3(rows.device, True)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.compile(backend="aot_eager" if rows.smoke else "inductor")
    counted, latents = {}, {}
    for name, which in (("plain", pipe), ("monitored", KPEMonitorPipeline.from_pipe(pipe))):
        dynamo.reset()
        dynamo.utils.counters.clear()
        generator = torch.Generator(rows.device).manual_seed(0)
        latents[name] = which(**arguments, generator=generator, output_type="latent", return_dict=False)[0]
        counted[name] = sum(dynamo.utils.counters["graph_break"].values())
    return {"graph_breaks": counted, "bit_equal_when_monitored": torch.equal(latents["plain"], latents["monitored"])}


def main() -> None:
    rows = Rows(parse_args(__doc__))
    rows.make("graph breaks, a small SD3", lambda: graph_breaks(rows))
    for name, build in {"SD3.5-medium": sd3, "Wan 2.1 1.3B": wan, "FLUX.1 12B": flux}.items():
        rows.make(name, lambda b=build: measured(b, rows))


if __name__ == "__main__":
    main()
