"""``kts theory``: the paper's statements, measured."""

from typing import TYPE_CHECKING

import rich
from rich.table import Table

from ..theory.settings import TheorySettings
from .options import options_of

if TYPE_CHECKING:
    from ..theory.job import TheoryResult


@options_of(TheorySettings)
def theory(settings: TheorySettings) -> None:
    """Measure what the paper proves of the exact flow on your training images: dominance, bounds, energy and density."""
    from ..theory.job import run_theory

    _print(run_theory(settings))


def _print(result: "TheoryResult") -> None:
    for coding, rows in result.found.items():
        heads = ("t", "dominant", "power", "low", "high", "width", "slope", "R2", "R2 exp")
        table = Table(*heads, title=f"Data {coding}")
        for row in rows:
            energies = (f"{value:.3f}" for value in (row.power, row.low, row.high))
            cells = (row.width, row.slope, row.r2, row.expected_r2)
            table.add_row(f"{row.t:g}", f"{row.dominant:.1%}", *energies, *(f"{value:.2f}" for value in cells))
        rich.print(table)
    print("Dominant: share of pairs of image and noise whose own weight is above .99.")
    print("Power: squared speed per dimension; between low and high under dominance; width: of these bounds over it.")
    print("Slope, R2: of the line of half the power on -log density; R2 exp: under dominance.")
    paths = result.paths
    curves = {"closed form": paths.closed, "network": paths.net, "closed form at the network's states": paths.closed_at_net}
    for name, power in curves.items():
        if power is not None:
            print(f"Power at the last step over that in the middle, {name}: {paths.late(power):.2f}")
    for note in result.notes:
        print(f"Note: {note}")
    print("Written: " + ", ".join(str(path) for path in result.files))
