"""F_mem and path energy of plain Euler samples along a model's training.

    python -m benchmarks.science.along_training --data fashion_mnist.npz --snapshots runs/memorizing/snapshots/*

The snapshots are those of ``examples/train_fashion_mnist.py --snapshot-every``.
"""

import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.fashion_mnist import load_data
from benchmarks.science.laboratory import Laboratory, Sampler, load_model
from diffusers_kts.memorization.fraction import measure_memorization, memorized_fraction


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--snapshots", type=Path, nargs="+", required=True, help="weights along the training")
    options.add_argument("--num-inference-steps", dest="steps", type=int, default=100)
    args, began = options.parse_args(), time.time()
    data, sampler, found = load_data(args.data), Sampler(steps=args.steps), []
    for path in args.snapshots:
        laboratory = Laboratory(load_model(path, data, args.num_images), args.num_samples, args.cache)
        draws = [laboratory.draw(sampler, seed) for seed in args.seeds]
        each = [measure_memorization(draw.images, laboratory.model.training).is_memorized for draw in draws]
        energy = torch.cat([draw.trace(sampler).per_dim for draw in draws]).mean()
        f_mem, by_seed = memorized_fraction(torch.cat(each)), [hits.double().mean().item() for hits in each]
        about = {"snapshot": laboratory.model.name, "energy_per_dim": float(energy)}
        found.append(about | {"f_mem": asdict(f_mem), "f_mem_by_seed": by_seed})
    result = {"num_samples": args.num_samples, "seeds": args.seeds, "environment": environment(began), "snapshots": found}
    write_page(args.output, "along_training", page(found, args.steps), result)


def page(found: list[dict], steps: int) -> str:
    rows = []
    for row in found:
        f, by_seed = row["f_mem"], [100 * share for share in row["f_mem_by_seed"]]
        fraction, low, high = (100 * value for value in (f["count"] / f["n"], f["low"], f["high"]))
        interval = f"{fraction:.1f} ({low:.1f} to {high:.1f})"
        rows.append([row["snapshot"], interval, f"{min(by_seed):.1f} to {max(by_seed):.1f}", f"{row['energy_per_dim']:.4f}"])
    return f"Plain Euler, {steps} steps.\n\n" + table(["snapshot", "F_mem % (95 %)", "seeds", "KPE per dim"], rows)


if __name__ == "__main__":
    main()
