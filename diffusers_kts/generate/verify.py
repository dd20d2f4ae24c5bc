"""What an output holds: which blocks are there, missing, damaged."""

from dataclasses import dataclass, field

from tqdm import tqdm

from .assemble import assembled
from .ledger import Ledger, Manifest, NotAnOutput, Record
from .plan import Block
from .storage import PRIVATE, Store

SHOWN = 5
OTHER_CONTENT = "has other content than was written"


@dataclass
class Inspection:
    """The state of an output.

    Attributes:
        good: blocks with a record whose files are as recorded. missing: blocks without. damaged: block -> what is wrong.
        failed: block -> reason, of missing ones that an earlier run could not draw.
        tables_good: metadata.jsonl and candidates.jsonl are there, made from all blocks. strangers: files of no block.
        needs_recheck: some damage shows in contents only, not in sizes.
    """

    manifest: Manifest
    good: set[int] = field(default_factory=set)
    missing: list[int] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    tables_good: bool = False
    needs_recheck: bool = False
    strangers: list[str] = field(default_factory=list)
    samples: int = 0
    bytes: int = 0

    @property
    def complete(self) -> bool:
        return not self.missing and not self.damaged and self.tables_good

    def lines(self) -> list[str]:
        plan = self.manifest.plan
        lines = [
            f"{len(self.good)} of {len(plan)} blocks are there: {self.samples} samples kept of {plan.num_samples} to draw, "
            f"{tqdm.format_sizeof(self.bytes, 'B')}."
        ]
        for number, wrong in self.damaged.items():
            lines.append(f"damaged: {block_name(plan.block(number))}: {wrong}.")
        for number, reason in self.failed.items():
            lines.append(f"failed: {block_name(plan.block(number))}: {reason}.")
        for first, last in _ranges([number for number in self.missing if number not in self.failed]):
            samples = f"samples {plan.block(first).start} to {plan.block(last).stop - 1}"
            lines.append(f"missing: {'block ' + str(first) if first == last else f'blocks {first} to {last}'} ({samples}).")
        if not self.tables_good and not self.missing and not self.damaged:
            name = " (metadata.jsonl)" if self.manifest.identity["format"] == "imagefolder" else ""
            lines.append(f"the tables made of all blocks{name} are missing, old or damaged.")
        if self.strangers:
            more = f" and {len(self.strangers) - SHOWN} more" if len(self.strangers) > SHOWN else ""
            lines.append(f"of no block here: {', '.join(self.strangers[:SHOWN])}{more}.")
        again = "run kts generate again with the same settings"
        if self.needs_recheck:
            again += " and --recheck"  # without it, files are known by their size
        lines.append("Complete." if self.complete else f"Not complete: {again}.")
        return lines


def block_name(block: Block) -> str:
    return f"block {block.number} (samples {block.start} to {block.stop - 1})"


def inspect_output(store: Store, ledger: Ledger, contents: bool = True) -> Inspection:
    """Look at every file: its size, and with ``contents`` its SHA-256.

    Raises:
        NotAnOutput: there is no manifest, or it is damaged.
    """
    manifest = ledger.manifest()
    if manifest is None:
        raise NotAnOutput(f"{store.url} holds no output of kts generate; give the folder that was its --output.")
    committed = ledger.committed()  # before the files are listed: a block that another process commits meanwhile is missing
    found, sizes = Inspection(manifest), store.sizes()
    known = set()
    for number in range(len(manifest.plan)):
        record = ledger.record(number) if number in committed else None
        if record is None:
            if number in committed:
                found.damaged[number] = "its record cannot be read"
            else:
                found.missing.append(number)
            continue
        known |= set(record.files)
        if wrong := _wrong(store, record, sizes, contents):
            found.damaged[number] = wrong
            found.needs_recheck |= wrong.endswith(OTHER_CONTENT)
            continue
        found.good.add(number)
        found.samples += record.samples
        found.bytes += sum(stored.size for stored in record.files.values())
    found.failed = {number: why for number, why in ledger.failures().items() if number in found.missing}
    sums = assembled(store, contents)
    found.tables_good = sums is not None and sums["samples"] == found.samples
    found.needs_recheck |= contents and sums is None and not found.missing and assembled(store, contents=False) is not None
    folders = ("images/", "videos/", "frames/", "shards/", "data/", "traces/")
    found.strangers = sorted(n for n in sizes if n.startswith(folders) and n not in known and not n.startswith(PRIVATE))
    return found


def is_damaged(store: Store, ledger: Ledger, block: int, contents: bool) -> bool:
    """Whether a block has a record that its files, as they are now, do not agree with."""
    if not ledger.is_committed(block):
        return False
    record = ledger.record(block)
    if record is None:
        return ledger.is_committed(block)
    sizes = {name: size for name in record.files if (size := store.size(name)) is not None}
    return _wrong(store, record, sizes, contents) is not None


def _wrong(store: Store, record: Record, sizes: dict[str, int], contents: bool) -> str | None:
    for name, stored in record.files.items():
        if name not in sizes:
            return f"{name} is gone"
        if sizes[name] != stored.size:
            return f"{name} has {sizes[name]} bytes, not {stored.size}"
        if contents and store.stored(name) != stored:
            return f"{name} {OTHER_CONTENT}"
    return None


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, as (first, last)."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
