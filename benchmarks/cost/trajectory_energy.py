"""Kinetic energy of 256 trajectories of 100 steps: as one batch, beside one trajectory at a time with a sync at every step.

    python -m benchmarks.cost.trajectory_energy

The reference's way, in our own words: for every trajectory, for every step, call the network on that one state, read its
squared speed back to the host, add it up, move on. Ours: one batch through `KTSFlowMatchScheduler`, which keeps the speeds on
the device; they are read once, at the end. Same network, same noises; the energies must agree.

What a batch saves is the cost of a call, so it depends on the network: the ratio is high where a call costs more than its
arithmetic (the MLPs of scripts like the paper's) and falls towards the arithmetic's own where that dominates. ``most`` is the
ratio if the batch ran its matrix products at this machine's speed and did nothing else. Times grow in proportion to
trajectories and steps, so the slow side runs a few of either and is scaled up. Writes
``benchmarks/results/trajectory_energy.json``.
"""

import argparse
import itertools
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost.stopwatch import matrix_flops, measure, race, write
from diffusers_kts import ClassConditionalFlowPipeline, KTSFlowMatchScheduler, embedded_model

TRAJECTORIES, STEPS = 256, 100
AGREEMENT = 1e-4  # relative, of float32 energies; networks round otherwise in a batch


class Mlp(nn.Module):
    """``v(x, t)`` of states (B, d) by three hidden layers, random weights."""

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        sizes = [d + 1, width, width, width]
        hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers, self.shape = nn.Sequential(*hidden, nn.Linear(width, d)), (d,)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, t.expand(len(x), 1)], 1))


class Embedded(nn.Module):
    """``v(x, t)`` of the embedded transformer, 28x28, for one class."""

    shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.transformer = ClassConditionalFlowPipeline.from_pretrained(embedded_model()).transformer

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return -self.transformer(x, timestep=1000 * (1 - t).expand(len(x)), class_labels=labels).sample


@dataclass(frozen=True)
class Case:
    """A network, and how much of the work each way is timed."""

    name: str
    network: nn.Module
    steps: int = STEPS
    alone: int = 16


@torch.no_grad()
def one_at_a_time(network: nn.Module, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """(B,) energies, the reference's way."""
    energies = []
    for x in noise.split(1):
        energy = 0.0
        for i in range(steps):
            v = network(x, torch.tensor(i / steps, device=x.device))
            energy += v.square().sum().item() / (2 * steps)
            x = x + v / steps
        energies.append(energy)
    return torch.tensor(energies)


@torch.no_grad()
def as_a_batch(network: nn.Module, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """(B,) energies, recorded by the scheduler."""
    scheduler, x = KTSFlowMatchScheduler(alpha_0=0.0, beta_0=0.0), noise
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], device=noise.device)
    for timestep in scheduler.timesteps:
        x = scheduler.step(-network(x, 1 - timestep / 1000), timestep, x, return_dict=False)[0]
    return scheduler.kpe.path_energy.total


def compare(case: Case, rounds: int, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    network = case.network.to(device).eval()
    noise = torch.randn(TRAJECTORIES, *network.shape, device=device)
    few = noise[: case.alone]
    expected, found = one_at_a_time(network, few, case.steps), as_a_batch(network, noise, case.steps)[: case.alone]
    error = float((found / expected - 1).abs().max())
    if error > AGREEMENT:
        raise SystemExit(f"{case.name}: the energies differ by {error:.1e}, more than {AGREEMENT:g}; the times say nothing.")
    ways = {
        "one_at_a_time": lambda: one_at_a_time(network, few, case.steps),
        "as_a_batch": lambda: as_a_batch(network, noise, case.steps),
    }
    timed = race(ways, rounds, device=device)
    share = STEPS / case.steps
    alone = timed.median("one_at_a_time") * TRAJECTORIES / case.alone
    faster = timed.ratio("one_at_a_time", "as_a_batch")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(noise, torch.tensor(0.5, device=device))
    scale = TRAJECTORIES / case.alone
    return {
        "network": case.name,
        "one_at_a_time_seconds": alone * share,
        "as_a_batch_seconds": timed.median("as_a_batch") * share,
        "times_faster": {name: value * scale for name, value in asdict(faster).items()},
        "operations": counter.get_total_flops() * STEPS,
        "timed": {"alone": case.alone, "steps": case.steps, "rounds": rounds},
        "largest_relative_difference": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    began = time.time()
    torch.manual_seed(0)
    cases = [
        Case("MLP 3 x 64, 2 dimensions", Mlp(2, 64)),
        Case("MLP 3 x 128, 8x8", Mlp(64, 128)),
        Case("MLP 3 x 256, 8x8", Mlp(64, 256)),
        Case("MLP 3 x 512, 28x28", Mlp(784, 512)),
        Case("embedded transformer, 28x28", Embedded(), steps=4, alone=4),
    ]
    speed, rows = matrix_flops(args.device), []
    for case in cases:
        rows.append(compare(case, args.rounds, args.device))
        print(rows[-1], flush=True)
    speed = max(speed, matrix_flops(args.device))  # not that of a moment when the machine did something else
    for row in rows:
        row["most"] = row["one_at_a_time_seconds"] * speed / row["operations"]
    measures = [
        measure(
            f"energy of {TRAJECTORIES} trajectories x {STEPS} steps, one at a time / as a batch, {row['network']}",
            20,
            row["times_faster"],
            f"{row['most']:.0f}, the arithmetic of the network",
            at_least=True,
        )
        for row in rows
    ]
    result = {"measures": measures, "trajectories": TRAJECTORIES, "steps": STEPS, "matrix_flops": speed, "networks": rows}
    write("trajectory_energy", result, began, args.device)


if __name__ == "__main__":
    main()
