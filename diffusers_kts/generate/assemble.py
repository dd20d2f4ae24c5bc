"""The files that need all blocks: ``metadata.jsonl`` by the Hub's convention, and the list of candidates."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import parse_json
from .ledger import ASSEMBLED, Ledger
from .storage import Store, Stored, discard

METADATA = "metadata.jsonl"
CANDIDATES = "candidates.jsonl"
SUMS = ("blocks", "samples", "calls", "calls_saved")


def assemble(
    store: Store,
    ledger: Ledger,
    format: str,
    selection: bool,
    blocks: Iterable[int],
    write_card: Callable[[dict[str, int]], None] | None,
) -> dict[str, int]:
    """Write them again from the records of ``blocks``, and the card; returns the numbers `SUMS`."""
    blocks = sorted(blocks)
    sums = dict.fromkeys(SUMS, 0) | {"blocks": len(blocks)}
    names = ([METADATA] if format == "imagefolder" else []) + ([CANDIDATES] if selection else [])
    partial = {name: store.partial() for name in names}
    try:
        files = {name: path.open("w", encoding="utf-8") for name, path in partial.items()}
        for number in blocks:
            record = ledger.record(number)
            if record is None:
                continue
            sums["samples"] += record.samples
            sums["calls"] += record.calls
            sums["calls_saved"] += record.calls_saved
            for name, rows in ((METADATA, record.rows), (CANDIDATES, record.candidates)):
                if name in files:
                    files[name].writelines(json.dumps(row) + "\n" for row in rows)
        for file in files.values():
            file.close()
        for name, path in partial.items():
            store.place(path, name)
    except BaseException:
        for path in partial.values():
            discard(path)
        raise
    if write_card is not None:
        write_card(sums)
    done = {name: dataclasses.asdict(store.stored(name)) for name in names}
    store.write(ASSEMBLED, json.dumps({"files": done, "sums": sums}).encode())
    return sums


def assembled(store: Store, contents: bool) -> dict[str, int] | None:
    """The sums, if the files are there as they were written, by size or by content; else None."""
    try:
        noted = parse_json(store.read(ASSEMBLED), dict)
        for name, stored in noted["files"].items():
            if store.size(name) != stored["size"] or (contents and store.stored(name) != Stored(**stored)):
                return None
        return {name: int(noted["sums"][name]) for name in SUMS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_finished(folder: Path) -> None:
    """Raises ValueError for an output of ``kts generate`` that is not complete; any other folder passes."""
    store = Store(str(folder))
    if folder.is_dir() and Ledger(store).manifest() is not None and assembled(store, contents=False) is None:
        raise ValueError(f"{folder} is not finished; run its kts generate command again, and it draws what is missing.")
