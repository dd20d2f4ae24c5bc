"""Errors and orders of convergence of the KTS schedulers, printed as the tables of docs/solvers.md.

Gaussian data ``N(0, s^2 I)``, whose velocity is known: ``dx/dt = eta(t) a(t) x`` has the solution ``exp(int eta a dt)`` and
its path energy is an integral, both computed here on 200,000 points.

    python -m benchmarks.science.solver_orders
"""

import numpy as np
import torch

from diffusers_kts import (
    KTSDPMSolverMultistepScheduler,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
    KTSUniPCMultistepScheduler,
)

S, STEPS = 0.5, (25, 50, 100)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SOLVERS = {
    "Euler": (KTSFlowMatchScheduler, {}),
    "Heun": (KTSFlowMatchHeunScheduler, {}),
    "UniPC 2": (KTSUniPCMultistepScheduler, FLOW),
    "DPM-Solver++ 2M": (KTSDPMSolverMultistepScheduler, FLOW),
    "DPM-Solver++ 3M": (KTSDPMSolverMultistepScheduler, FLOW | {"solver_order": 3}),
}
SHAPINGS = {
    "off": {"alpha_0": 0.0, "beta_0": 0.0},
    "0.3 / 0.04": {"alpha_0": 0.3, "beta_0": 0.04},
    "0.3 / 0.3, constant": {"alpha_0": 0.3, "beta_0": 0.3, "early_schedule": "constant", "late_schedule": "constant"},
}
GRIDS = {
    "the pipelines' schedule (shift 3)": None,
    "even in log-SNR, from -3 to 3": lambda n: torch.linspace(3, -3, n + 1, dtype=torch.float64).sigmoid().float(),
}


def rate(t: torch.Tensor) -> torch.Tensor:
    return (t * S * S - (1 - t)) / (t * t * S * S + (1 - t) ** 2)


def exact(gain, start: float, end: float) -> tuple[float, float]:
    """Factor of the flow from ``start`` to ``end``, and path energy per squared norm of the start."""
    h = (end - start) / 200_000
    t = start + (torch.arange(200_000, dtype=torch.float64) + 0.5) * h
    speed = gain(t) * rate(t)
    growth = torch.exp((speed.cumsum(0) - speed / 2) * h)
    return float(torch.exp(speed.sum() * h)), float(0.5 * (speed * growth).square().sum() * h)


def errors(cls, options: dict, shaping: dict, grid, n: int) -> tuple[float, float]:
    flow_shift = {"shift": 3.0} if issubclass(cls, KTSFlowMatchScheduler) else {"flow_shift": 3.0}
    scheduler = cls(**options, **shaping, **flow_shift)
    scheduler.set_timesteps(n)
    if grid is not None:
        levels = grid(n)
        if cls is KTSFlowMatchHeunScheduler:
            levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        scheduler.sigmas = levels
    t = 1 - scheduler.sigmas.double()
    x = torch.ones(1, 1, dtype=torch.float64)
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(-rate(t[i]) * x, timestep, x, return_dict=False)[0]
    end, energy = exact(scheduler.gain, float(t[0]), float(t[-1]))
    return abs(float(x) / end - 1), abs(float(scheduler.kpe.path_energy.total) / energy - 1)


def main() -> None:
    for heading, grid in GRIDS.items():
        print(f"\n### {heading}\n")
        columns = [f"{n} steps" for n in STEPS] + ([] if grid is None else ["order"])
        columns = [f"{what}, {column}" for what in ("end", "energy") for column in columns]
        print(f"| solver | shaping | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}")
        for solver, (cls, options) in SOLVERS.items():
            for shaping, settings in SHAPINGS.items():
                cells = []
                for column in zip(*(errors(cls, options, settings, grid, n) for n in STEPS), strict=True):
                    cells += [f"{error:.1e}" for error in column]
                    if grid is not None:
                        cells.append(f"{-np.polyfit(np.log(STEPS), np.log(column), 1)[0]:.2f}")
                print(f"| {solver} | {shaping} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
