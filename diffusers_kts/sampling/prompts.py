"""What to draw: prompts or class labels from text, JSON Lines, CSV, Parquet or a data set, with the columns beside them."""

import csv
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import parse_json
from ..generate.columns import Scalar, carried
from ..generate.settings import GenerateSettings

REMEDY = "give a .txt, .jsonl, .csv or .parquet file"


@dataclass(frozen=True)
class Prompt:
    """One thing to draw: the prompt, or the name or number of a class, and the other columns of its row, as `carried`."""

    text: str | int
    columns: dict[str, Scalar] = field(default_factory=dict)


def read_prompts(settings: GenerateSettings, num_classes: int | None) -> list[Prompt]:
    """The prompts of the settings, in order.

    Args:
        num_classes (`int`, *optional*): of a class-conditional model, whose labels may be left out: all, in order.

    Raises:
        ValueError: unreadable (with the line), no such column, or no prompts.
    """
    source: Iterable[Prompt]
    if settings.prompts is not None:
        source = _read_file(Path(settings.prompts), settings.prompt_column)
    elif settings.dataset is not None:
        source = _read_dataset(settings)
    elif num_classes is not None:
        labels = settings.class_labels.split(",") if settings.class_labels is not None else range(num_classes)
        classes = [Prompt(label.strip() if isinstance(label, str) else label) for label in labels]
        source = classes if settings.num_prompts is None else itertools.cycle(classes)
    else:
        raise ValueError("there are no prompts; give a file with --prompts, or a data set with --dataset.")
    found = list(itertools.islice(source, settings.num_prompts))
    if not found:
        raise ValueError(f"{settings.prompts or settings.dataset} holds no prompts; give at least one.")
    if num_classes is not None:
        found = [Prompt(int(p.text) if str(p.text).isdecimal() else p.text, p.columns) for p in found]
    elif not all(isinstance(p.text, str) for p in found):
        found = [Prompt(str(p.text), p.columns) for p in found]
    return found


def prompt_lines(prompts: Iterable[Prompt]) -> Iterator[bytes]:
    """Prompts and columns as lines of JSON, in order."""
    return (json.dumps([prompt.text, prompt.columns], sort_keys=True).encode() + b"\n" for prompt in prompts)


def prompts_hash(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of prompts and columns, in order."""
    digest = hashlib.sha256()
    for line in prompt_lines(prompts):
        digest.update(line)
    return digest.hexdigest()


def first_difference(there: Sequence[bytes], prompts: Sequence[Prompt]) -> str:
    """The first of ``prompts`` that is not as in ``there``, in words."""
    now = list(prompt_lines(prompts))
    number = next((i for i, (a, b) in enumerate(zip(there, now, strict=False)) if a != b), min(len(there), len(now)))
    old, new = (
        f"{lines[number].decode(errors='replace').strip():.80}" if number < len(lines) else "none" for lines in (there, now)
    )
    return f"prompt {number + 1} is {old:.80} there, {new:.80} now" if there else "the prompts are others"


def _read_file(path: Path, column: str) -> Iterator[Prompt]:
    readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path} has the ending {path.suffix!r}; {REMEDY}.")
    if not path.is_file():
        raise ValueError(f"{path} is no file; {REMEDY}.")
    return readers[path.suffix](path, column)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1.

    Raises:
        ValueError: not UTF-8.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number} is not UTF-8 ({error.reason}); save the file as UTF-8.") from error


def _read_text(path: Path, column: str) -> Iterator[Prompt]:
    for _, line in _lines(path):
        if line.strip():
            yield Prompt(line.strip())


def _read_jsonl(path: Path, column: str) -> Iterator[Prompt]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line, dict)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON of one object ({error}); give one per line.") from error
        yield _prompt(row, column, where)


def _read_csv(path: Path, column: str) -> Iterator[Prompt]:
    reader = csv.reader((line + "\n" for _, line in _lines(path)), strict=True)
    try:
        header = next(reader, [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise ValueError(f"{path} has two columns {twice[0]!r}; rename one.")
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise ValueError(f"{where} has {len(fields)} fields, the header {len(header)}; quote fields with commas.")
            row = dict(zip(header, fields, strict=True))
            if not row.get(column, "there is none").strip():
                raise ValueError(f"{where}: the prompt is empty; fill the cell, or remove the row.")
            yield _prompt(row, column, where)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV ({error}).") from error


def _read_parquet(path: Path, column: str) -> Iterator[Prompt]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield _prompt(row, column, f"{path}, row {number}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable Parquet ({error}).") from error


def _read_dataset(settings: GenerateSettings) -> Iterator[Prompt]:
    name, split = str(settings.dataset), settings.split
    try:
        import datasets
    except ImportError as error:
        raise ValueError('--dataset needs the package datasets: pip install "diffusers-kts[generate]".') from error
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # whatever the Hub, the network or a damaged file make it raise
        raise ValueError(
            f"the data set {name!r}, split {split!r}, cannot be read ({' '.join(str(error).split())})."
        ) from error
    scalar = [c for c, kind in rows.features.items() if isinstance(kind, (datasets.Value, datasets.ClassLabel))]
    rows = rows.select_columns([c for c in rows.column_names if c in scalar])  # pictures are not decoded to be dropped
    return (_prompt(row, settings.prompt_column, f"{name}, row {i}") for i, row in enumerate(rows, 1))


def _prompt(row: dict[str, Any], column: str, where: str) -> Prompt:
    if column not in row:
        names = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{where} has no column {column!r}; its columns: {names}. Name it with --prompt-column.")
    text = row[column]
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise ValueError(f"{where}: the prompt is {text!r}; give text, or the number of a class.")
    return Prompt(text, carried(row, column, where))


def column_types(prompts: Iterable[Prompt]) -> dict[str, type]:
    """Type of every column beside the prompts; whole numbers beside fractions are fractions.

    Raises:
        ValueError: a column mixes text and numbers, which no reader of the metadata could load.
    """
    found: dict[str, type] = {}
    for number, prompt in enumerate(prompts, 1):
        for name, value in prompt.columns.items():
            kind = found.setdefault(name, type(value))
            if value is None or kind is type(value):
                continue
            if kind is type(None) or {kind, type(value)} == {int, float}:
                found[name] = float if kind is int else type(value) if kind is type(None) else kind
            else:
                raise ValueError(
                    f"column {name!r} is {kind.__name__} at first and {type(value).__name__} at prompt {number}; "
                    "give one kind a column."
                )
    return {name: str if kind is type(None) else kind for name, kind in found.items()}
