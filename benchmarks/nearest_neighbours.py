"""Time and memory of the exact nearest neighbours and of the exact velocity, on all 60,000 training images.

    python benchmarks/nearest_neighbours.py --data fashion_mnist.npz

Prints the time of one call of `EmpiricalVelocity` at batch 64; of 10,000 samples (the test images) against 60,000 training
images of 28x28; on the first 1,000 samples the time of a chunked `torch.cdist` in both of its forms, and whether distances and
neighbours agree; and the peak memory of the process so far (on Linux), images included.
"""

import argparse
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffusers_kts.empirical import EmpiricalVelocity
from diffusers_kts.memorization import distinct_images, nearest_neighbours


def measured(what: str, call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {seconds:.1f} s, peak memory of the process {peak:.2f} GiB", flush=True)
    return result, seconds


def with_cdist(samples: torch.Tensor, training: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The two nearest by all distances, in chunks of 1024."""
    x, best = samples.flatten(1), []
    for start in range(0, len(training), 1024):
        found = torch.cdist(x, training[start : start + 1024].flatten(1), compute_mode=mode).topk(2, largest=False)
        best.append((found.values, found.indices + start))
    distances, order = torch.cat([d for d, _ in best], 1).sort(1)
    return distances[:, :2], torch.cat([i for _, i in best], 1).gather(1, order[:, :2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help=".npz with x_train and x_test")
    args = parser.parse_args()
    with np.load(args.data) as data:
        training, samples = (torch.from_numpy(data[key]).float().div_(255) for key in ("x_train", "x_test"))
    print(f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")
    measured("images loaded", lambda: None)
    noise, timestep = torch.randn(64, 1, 28, 28), torch.tensor(500.0)
    measured("one call of EmpiricalVelocity, batch 64", lambda: EmpiricalVelocity(training[:, None])(noise, timestep))
    distinct, _ = measured("distinct training images", lambda: distinct_images(training))
    print(f"  {len(distinct)} of {len(training)}")
    measured(f"{len(samples)} samples, nearest_neighbours", lambda: nearest_neighbours(samples, training))
    few = samples[:1000]
    ours, seconds = measured("1000 samples, nearest_neighbours", lambda: nearest_neighbours(few, training))
    for mode in ("donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist"):
        theirs, taken = measured(f"1000 samples, torch.cdist {mode}", lambda mode=mode: with_cdist(few, training, mode))
        off, same = float((ours[0] - theirs[0]).abs().max()), float((ours[1] == theirs[1]).float().mean())
        print(f"  ours takes {seconds / taken:.2f} of that; distances differ by {off:.1e} at most, same neighbours {same:.2%}")
    copies = training[:1000]
    for mode in ("donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist"):
        theirs = with_cdist(copies, training[:1024], mode)
        print(f"  1000 training images as samples: largest d1 {float(theirs[0][:, 0].max()):.1e} with {mode}")
    print(f"  and {float(nearest_neighbours(copies, training[:1024])[0][:, 0].max()):.1e} with nearest_neighbours")


if __name__ == "__main__":
    main()
