"""``kts demo``: the main job."""

from typing import TYPE_CHECKING

import rich
from rich.table import Table

from ..demo.settings import DemoSettings
from .options import options_of

if TYPE_CHECKING:
    from ..demo.job import DemoResult


@options_of(DemoSettings)
def demo(settings: DemoSettings) -> None:
    """Draw the same noises with plain Euler, KTS and touchdown; measure, compare and picture them."""
    from ..demo.job import run_demo

    _report(run_demo(settings))


def _report(result: "DemoResult") -> None:
    table = Table("sampler", "calls", "energy", "late", "excess", "F_mem", "95 %", "s")
    for sampler in result.samplers.values():
        energy, f_mem = sampler.trace.path_energy.per_dim, ("unknown", "")
        if sampler.f_mem is not None:
            interval = f"{100 * sampler.f_mem.low:.0f}-{100 * sampler.f_mem.high:.0f}"
            f_mem = (f"{sampler.f_mem.fraction:.1%}", interval)
        means = [f"{part.nanmean():.4f}" for part in (energy.total, energy.late, sampler.trace.excess_per_dim)]
        table.add_row(sampler.heading, str(sampler.trace.num_steps), *means, *f_mem, f"{sampler.seconds:.1f}")
    rich.print(table)
    print("Energy: path energy per dimension, mean over samples; excess: beyond that of a straight, even path.")
    print("F_mem: share with d1/d2 < 1/3 (L2 in pixels).")
    for note in result.notes:
        print(f"Note: {note}.")
    print("Written: " + ", ".join(str(path) for path in result.files))
