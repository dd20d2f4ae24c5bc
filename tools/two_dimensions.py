"""The pictures and the table of docs/concepts/theory.md in two dimensions: ``python -m tools.two_dimensions``.

Moons and rings, standardized; the exact flow of a few training points next to that of very many, which stand for the
distribution itself.
"""

from pathlib import Path

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from sklearn.datasets import make_circles, make_moons

from diffusers_kts.models.empirical import EmpiricalVelocity
from diffusers_kts.theory import measure_at

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
FEW, MANY, PATHS, STEPS, TOUCHDOWN = 24, 4000, 120, 200, 0.7
TIMES = (0.2, 0.5, 0.8, 0.95)


def points(name: str, count: int) -> torch.Tensor:
    make = {"moons": make_moons, "rings": lambda **options: make_circles(factor=0.5, **options)}[name]
    data = torch.from_numpy(make(n_samples=count, noise=0.05, random_state=0)[0])
    return (data - data.mean(0)) / data.std()


def walk(model: EmpiricalVelocity, noise: torch.Tensor, touchdown: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """States (N + 1, B, 2) and power (N, B) of Euler steps up to ``touchdown``, then of one to the data estimate."""
    states, power = [noise], []
    for step in range(round(touchdown * STEPS) + (touchdown < 1)):
        t = step / STEPS
        v = model.velocity(states[-1], t)
        states.append(states[-1] + v * (1 / STEPS if t < touchdown else 1 - t))
        power.append(v.square().sum(1))
    return torch.stack(states), torch.stack(power)


def draw_paths() -> None:
    figure = Figure(figsize=(12, 8), layout="constrained")
    noise = torch.randn(PATHS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    headings = (f"{FEW} training points", f"{MANY:,} training points", f"{FEW} training points, touchdown at {TOUCHDOWN}")
    for row, name in zip(figure.subplots(2, 3), ("moons", "rings"), strict=True):
        for ax, heading, count, end in zip(row, headings, (FEW, MANY, FEW), (1.0, 1.0, TOUCHDOWN), strict=True):
            data = points(name, count)
            states, power = walk(EmpiricalVelocity(data, dtype=torch.float64), noise, end)
            segments = torch.stack([states[:-1], states[1:]], 2).flatten(0, 1).numpy()
            lines = LineCollection(segments, array=power.flatten().numpy(), cmap="viridis", clim=(0, 6), linewidths=0.7)
            ax.add_collection(lines)
            ax.plot(*states[0].T, ".", color="0.6", markersize=2)
            ax.plot(*states[-1].T, ".", color="#D55E00", markersize=3)
            if count == FEW:
                ax.plot(*data.T, "o", markerfacecolor="none", markeredgecolor="black", markersize=7)
            ax.set(title=f"{name}, {heading}", xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
    figure.colorbar(lines, ax=figure.axes, label="power: squared speed", shrink=0.6)
    figure.savefig(ASSETS / "two-dimensions.png", dpi=90)


def print_table() -> None:
    print(
        "| data | t | own weight > .99 | power | bounds | slope | R² | R² under dominance |\n|---|---|---|---|---|---|---|---|"
    )
    for name in ("moons", "rings"):
        data, generator = points(name, FEW), torch.Generator().manual_seed(1)
        model = EmpiricalVelocity(data, dtype=torch.float64)
        indices = torch.randint(FEW, (4000,), generator=generator)
        noise = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
        for t in TIMES:
            f = measure_at(model, t, indices, noise)
            power = f"{2 * f.power:.2f} | {2 * f.low:.2f} to {2 * f.high:.2f}"
            print(f"| {name} | {t:g} | {f.dominant:.0%} | {power} | {f.slope:.2f} | {f.r2:.2f} | {f.expected_r2:.2f} |")


if __name__ == "__main__":
    draw_paths()
    print_table()
