"""``kts card``: the cards, from measured numbers."""

from pathlib import Path
from typing import Annotated

import typer

SPACE = Path("examples/space")


def card(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="scheduler, generalizing, memorizing, space, dataset; default all.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of the JSON files that the benchmarks wrote.")] = Path(
        "benchmarks/results"
    ),
    output: Annotated[Path, typer.Option(help="Folder for the cards.")] = Path("model_cards"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace cards that are there.")] = False,
) -> None:
    """Write the cards. A number that was not measured is refused."""
    from diffusers.utils.logging import disable_progress_bar

    from ..publish.cards import KINDS, card, write_card

    disable_progress_bar()
    for kind in kinds or KINDS:
        if not overwrite and (there := output / f"{kind}.md").exists():
            raise FileExistsError(f"{there} exists; add --overwrite, or give another --output.")
    cards = [card(kind, results) for kind in kinds or KINDS]
    for each in cards:
        places = [output / f"{each.kind}.md"]
        if each.kind == "space" and SPACE.is_dir():
            places.append(SPACE / "README.md")  # which a Space reads its settings from
        for place in places:
            for path in write_card(each, place):
                print(f"Written: {path}")
