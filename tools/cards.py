"""Write the cards in model_cards/ from measured numbers. A number that was not measured is refused.

python tools/cards.py [scheduler generalizing memorizing space dataset] --overwrite
"""

import argparse
from pathlib import Path

from diffusers.utils.logging import disable_progress_bar

from diffusers_kts.publish.cards import KINDS, card, write_card

SPACE = Path("examples/space")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"from {', '.join(KINDS)}; default: all")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="what the benchmarks wrote")
    parser.add_argument("--output", type=Path, default=Path("model_cards"), help="folder for the cards")
    parser.add_argument("--overwrite", action="store_true", help="replace cards that are there")
    args = parser.parse_args()
    disable_progress_bar()
    try:
        write(args.kinds or KINDS, args.results, args.output, args.overwrite)
    except (ValueError, OSError) as error:
        parser.exit(2, f"cards: {error}\n")


def write(kinds: list[str], results: Path, output: Path, overwrite: bool) -> None:
    for kind in kinds:
        if not overwrite and (there := output / f"{kind}.md").exists():
            raise FileExistsError(f"{there} exists; add --overwrite, or give another --output.")
    for each in [card(kind, results) for kind in kinds]:
        places = [output / f"{each.kind}.md"]
        if each.kind == "space" and SPACE.is_dir():
            places.append(SPACE / "README.md")  # which a Space reads its settings from
        for path in [path for place in places for path in write_card(each, place)]:
            print(f"Written: {path}")


if __name__ == "__main__":
    main()
