"""``kts generate`` with a transformer of real size and random weights, beside a bare loop of pipeline calls.

Text encoders and autoencoder are those of the embedded `emoji-memorizing`; the transformer is SD3.5-medium's in size and draws
1024 px. Pictures per second both ways, and whether a job that does its blocks in another order gives the same bytes.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel

from benchmarks.gpu.pipelines import random_weights
from benchmarks.gpu.rows import Rows, parse_args, waited
from diffusers_kts import KPEMonitorPipeline, embedded_model
from diffusers_kts.generate.job import run_generate
from diffusers_kts.generate.settings import GenerateSettings
from diffusers_kts.seeding import sample_generators


def large_model(folder: Path, rows: Rows) -> Path:
    pipe = DiffusionPipeline.from_pretrained(embedded_model("emoji-memorizing"), dtype=torch.bfloat16)
    small = pipe.transformer.config
    heads, layers, side = (2, 2, 16) if rows.smoke else (24, 24, 128)
    pipe.transformer = random_weights(
        SD3Transformer2DModel, rows.device, sample_size=side, in_channels=small.in_channels, out_channels=small.out_channels,
        num_layers=layers, num_attention_heads=heads, attention_head_dim=64, caption_projection_dim=64 * heads,
        joint_attention_dim=small.joint_attention_dim, pooled_projection_dim=small.pooled_projection_dim,
        pos_embed_max_size=192, qk_norm="rms_norm",
    )  # fmt: skip
    pipe.save_pretrained(folder / "model")
    return folder / "model"


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.png"))}


def measured(rows: Rows) -> dict[str, Any]:
    count, batch, steps = (4, 2, 2) if rows.smoke else (16, 4, 10)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = large_model(folder, rows)
        prompts = [f"noto emoji number {i}" for i in range(count)]
        (folder / "prompts.txt").write_text("\n".join(prompts))

        def job(name: str, shard: str | None = None) -> Any:
            return run_generate(
                GenerateSettings(
                    model=str(model), prompts=str(folder / "prompts.txt"), num_inference_steps=steps, guidance_scale=1.0,
                    batch_size=batch, dtype="bfloat16", output=str(folder / name), shard=shard,
                )
            )  # fmt: skip

        done = job("whole")
        for shard in ("1/2", "0/2"):
            job("other-order", shard)
        pipe = KPEMonitorPipeline.from_pipe(DiffusionPipeline.from_pretrained(model, dtype=torch.bfloat16)).to(rows.device)
        pipe.set_progress_bar_config(disable=True)
        pipe(prompts[:batch], num_inference_steps=2, guidance_scale=1.0, output_type="np")  # warms up
        began = waited(rows.device)
        for start in range(0, count, batch):
            some = range(start, start + batch)
            generators = sample_generators(0, some)
            pipe(
                [prompts[i] for i in some],
                num_inference_steps=steps,
                guidance_scale=1.0,
                generator=generators,
                output_type="np",
            )
        bare = waited(rows.device) - began
        whole, other = hashes(folder / "whole"), hashes(folder / "other-order")
        return {
            "pictures": len(whole),
            "per_second": {"bare loop": count / bare, "job": count / done.seconds},
            "share_of_the_bare_loop": bare / done.seconds,
            "same_bytes_in_another_order": whole == other,
        }


def main() -> None:
    rows = Rows(parse_args(__doc__))
    rows.make("SD3.5-medium's size, 1024 px", lambda: measured(rows))


if __name__ == "__main__":
    main()
