"""What an audit computes on the GPU: exact nearest neighbors, 10,000 x 60,000 of 784 numbers, and features of pictures."""

from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from benchmarks.gpu.rows import Rows, parse_args, peak_gib, seconds
from diffusers_kts.memorization.neighbors import nearest_neighbors


def neighbors(rows: Rows, dtype: torch.dtype) -> dict[str, Any]:
    few, many = (100, 600) if rows.smoke else (10_000, 60_000)
    generator = torch.Generator().manual_seed(0)
    samples, training = (torch.rand((n, 1, 28, 28), generator=generator).to(rows.device, dtype) for n in (few, many))
    nearest_neighbors(samples[:50], training)  # warms up
    found: list[Any] = []
    taken = seconds(lambda: found.append(nearest_neighbors(samples, training)), rows.device)
    distances, indices = found[0]
    exact = torch.cdist(samples[:50].flatten(1).double(), training.flatten(1).double()).topk(2, largest=False)
    return {
        "samples": few,
        "training": many,
        "seconds": taken,
        "peak_gib": peak_gib(lambda: nearest_neighbors(samples, training), rows.device),
        "same_neighbors_as_float64": bool(torch.equal(indices[:50], exact.indices)),
        "largest_relative_error": float(((distances[:50].double() - exact.values) / exact.values).abs().max()),
    }


def features(rows: Rows) -> dict[str, Any]:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2} if rows.smoke else {}
    network = Dinov2Model(Dinov2Config(**small)).to(rows.device).eval()
    batch = torch.rand((2 if rows.smoke else 64, 3, 224, 224), device=rows.device)
    with torch.no_grad():
        network(batch)
        taken = seconds(lambda: network(batch).pooler_output.cpu(), rows.device, times=1 if rows.smoke else 10)
    return {"pictures_per_second": len(batch) / taken}


def main() -> None:
    rows = Rows(parse_args(__doc__))
    for name, dtype in (("nearest neighbors, fp32", torch.float32), ("nearest neighbors, fp16", torch.float16)):
        rows.make(name, lambda d=dtype: neighbors(rows, d))
    rows.make("features, a DINOv2 base of random weights", lambda: features(rows))


if __name__ == "__main__":
    main()
