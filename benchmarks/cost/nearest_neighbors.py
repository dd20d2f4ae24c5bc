"""Time and memory of the exact nearest neighbors of F_mem, beside a brute force in chunks by `torch.cdist`.

    python -m benchmarks.cost.nearest_neighbors --data fashion_mnist.npz

Of 10,000 samples (the test images) against 60,000 training images of 28x28, both ways, in turn; `torch.cdist` in each of its
forms, by a matrix product, which rounds small distances away, and by differences, which is exact and slow: that one is timed
on the first 1,000 samples. Both ways are then held against each other, and against distances in float64. The least time is
that of the one matrix product that all distances need, at the speed of this machine. Also the time of one call of
`EmpiricalVelocity`, and the peak memory of the process, images included. Writes
``benchmarks/results/nearest_neighbors.json``, with a profile.
"""

import argparse
import cProfile
import pstats
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cost.stopwatch import matrix_flops, measure, race, write
from diffusers_kts.memorization.fraction import memorized
from diffusers_kts.memorization.neighbors import distinct_images, nearest_neighbors
from diffusers_kts.models.empirical import EmpiricalVelocity

CHUNK = 1024  # training images held against the samples at a time
PRODUCT, DIFFERENCES = "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"


def with_cdist(samples: torch.Tensor, training: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The two nearest by all distances, in chunks."""
    x, best = samples.flatten(1), []
    for start in range(0, len(training), CHUNK):
        found = torch.cdist(x, training[start : start + CHUNK].flatten(1), compute_mode=mode).topk(2, largest=False)
        best.append((found.values, found.indices + start))
    distances, order = torch.cat([d for d, _ in best], 1).sort(1)
    return distances[:, :2], torch.cat([i for _, i in best], 1).gather(1, order[:, :2])


def agreement(ours: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    return {
        "largest_difference_of_distances": float((ours[0] - theirs[0]).abs().max()),
        "same_neighbors": float((ours[1] == theirs[1]).float().mean()),
        "same_memorized": bool(torch.equal(memorized(ours[0]), memorized(theirs[0]))),
    }


def profile(call: Callable[[], Any]) -> list[dict[str, Any]]:
    """Where the time goes, dearest function first."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    dearest = sorted(stats.items(), key=lambda item: -item[1][2])[:8]
    return [{"function": where[2], "seconds": own} for where, (_, _, own, _, _) in dearest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help=".npz with x_train and x_test")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--few", type=int, default=1000, help="samples of the comparison by differences")
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    began = time.time()
    with np.load(args.data) as data:
        training, samples = (torch.from_numpy(data[key]).float().div_(255) for key in ("x_train", "x_test"))
    samples = samples[: args.samples]
    few = samples[: args.few]

    ways = {
        "ours": lambda: nearest_neighbors(samples, training),
        "cdist by products": lambda: with_cdist(samples, training, PRODUCT),
    }
    exact_ways = {
        "ours": lambda: nearest_neighbors(few, training),
        "cdist by differences": lambda: with_cdist(few, training, DIFFERENCES),
    }
    whole, part = race(ways, args.rounds, at_least=0), race(exact_ways, args.rounds, at_least=0)
    found, of_few = ways["ours"](), exact_ways["ours"]()
    speed = matrix_flops()
    least = 2 * len(samples) * len(training) * samples[0].numel() / speed
    limit = least / whole.median("cdist by products")
    noise, timestep = torch.randn(64, 1, 28, 28), torch.tensor(500.0)
    velocity = race({"call": lambda: EmpiricalVelocity(training[:, None])(noise, timestep)}, args.rounds, at_least=0)
    result = {
        "samples": len(samples),
        "training": len(training),
        "distinct": len(distinct_images(training)),
        "dimensions": samples[0].numel(),
        "by_products": whole.to_dict("ours", "cdist by products"),
        "by_differences": {"samples": len(few), **part.to_dict("ours", "cdist by differences")},
        "agrees_with": {
            "cdist by products": agreement(found, ways["cdist by products"]()),
            "cdist by differences": agreement(of_few, exact_ways["cdist by differences"]()),
            "cdist by differences, float64": agreement(of_few, with_cdist(few.double(), training.double(), DIFFERENCES)),
        },
        "training_images_as_samples": {
            "largest d1, ours": float(nearest_neighbors(training[:1000], training)[0][:, 0].max()),
            "largest d1, cdist by products": float(with_cdist(training[:1000], training, PRODUCT)[0][:, 0].max()),
        },
        "empirical_velocity_seconds": velocity.median("call"),
        "matrix_flops": speed,
        "least_seconds": least,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "profile": profile(ways["ours"]),
    }
    name = f"F_mem of {len(samples):,} x {len(training):,} (28x28), exact / brute force by `torch.cdist`"
    result["measures"] = [
        measure(
            f"{name}, by products, which finds {1 - result['agrees_with']['cdist by products']['same_neighbors']:.2%} of the "
            "neighbors wrong",
            0.7,
            result["by_products"]["ratio"],
            f"{limit:.2f}, one matrix product",
        ),
        measure(
            f"{name}, by differences, equal result, {len(few):,} samples",
            0.7,
            result["by_differences"]["ratio"],
            f"{least * len(few) / len(samples) / part.median('cdist by differences'):.3f}, one matrix product",
        ),
    ]
    print({key: value for key, value in result.items() if key != "profile"})
    write("nearest_neighbors", result, began)


if __name__ == "__main__":
    main()
