"""What to draw: prompts or class labels from text, JSON Lines, CSV, Parquet or a data set, with the other columns."""

import csv
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import brief, install
from ..files import parse_json
from .columns import Scalar, carried
from .settings import PromptSettings

OF_A_ROW = ("negative_prompt",)  # columns that a row may set for itself
OF_THE_JOB = ("seed", "guidance_scale", "height", "width", "num_frames", "num_inference_steps", "steps")
REMEDY = "give a .txt, .jsonl, .csv or .parquet file"


@dataclass(frozen=True)
class Prompt:
    """One thing to draw.

    Attributes:
        text: the prompt, or the name or number of a class.
        columns: the other columns of its row that are text or numbers; a name that the output needs gets ``prompts_`` first.
        arguments: what the row sets for itself (`OF_A_ROW`).
    """

    text: str | int
    columns: dict[str, Scalar] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)


def read_prompts(settings: PromptSettings, num_classes: int | None) -> list[Prompt]:
    """The prompts of the settings, in order.

    Args:
        settings (`PromptSettings`): where they are.
        num_classes (`int`, *optional*): of a class-conditional model, whose labels may be left out: all, in order.

    Raises:
        ValueError: unreadable, empty, or a column that cannot be used (each with its line), or no prompts.
    """
    source: Iterable[Prompt]
    if settings.prompt is not None:
        if not settings.prompt.strip():
            raise ValueError(f"prompt is {settings.prompt!r}; give some text.")
        source = [Prompt(settings.prompt)]
    elif settings.prompts is not None:
        source = _read_file(Path(settings.prompts), settings)
    elif settings.dataset is not None:
        source = _read_dataset(settings)
    elif num_classes is not None:
        labels = settings.class_labels.split(",") if settings.class_labels is not None else range(num_classes)
        classes = [Prompt(label.strip() if isinstance(label, str) else label) for label in labels]
        source = classes if settings.num_prompts is None else itertools.cycle(classes)
    else:
        raise ValueError("there are no prompts; give one with --prompt, a file with --prompts, or a data set with --dataset.")
    found = list(itertools.islice(source, settings.num_prompts))
    if not found:
        raise ValueError(f"{settings.prompts or settings.dataset} holds no prompts; give at least one.")
    if num_classes is not None:
        return [replace(p, text=int(p.text) if str(p.text).isdecimal() else p.text) for p in found]
    return [replace(p, text=str(p.text)) for p in found]


def in_turn(prompts: Sequence[Prompt], indices: Iterable[int]) -> list[Prompt]:
    """The prompt of each sample, where prompts repeat in order."""
    return [prompts[i % len(prompts)] for i in indices]


def prompt_lines(prompts: Iterable[Prompt]) -> Iterator[bytes]:
    """Prompts and columns as lines of JSON, in order."""
    for prompt in prompts:
        parts = [prompt.text, prompt.columns, *([prompt.arguments] if prompt.arguments else [])]
        yield json.dumps(parts, sort_keys=True).encode() + b"\n"


def prompts_hash(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of prompts, columns and what rows set for themselves, in order."""
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


def _read_file(path: Path, settings: PromptSettings) -> Iterator[Prompt]:
    readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"{str(path)!r:.200} has another ending; {REMEDY}.")
    if not path.is_file():
        raise ValueError(f"{path} is no file; {REMEDY}.")
    return readers[path.suffix](path, settings)


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


def _read_text(path: Path, settings: PromptSettings) -> Iterator[Prompt]:
    for _, line in _lines(path):
        if line.strip():
            yield Prompt(line.strip())


def _read_jsonl(path: Path, settings: PromptSettings) -> Iterator[Prompt]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line, dict)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON of one object ({error}); give one per line.") from error
        yield _prompt(row, settings, where)


def _read_csv(path: Path, settings: PromptSettings) -> Iterator[Prompt]:
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
            yield _prompt(dict(zip(header, fields, strict=True)), settings, where)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV ({error}).") from error


def _read_parquet(path: Path, settings: PromptSettings) -> Iterator[Prompt]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield _prompt(row, settings, f"{path}, row {number}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable Parquet ({brief(error)}).") from error


def _read_dataset(settings: PromptSettings) -> Iterator[Prompt]:
    name, split = str(settings.dataset), settings.split
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"--dataset needs the package datasets: {install('generate')}.") from error
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # whatever the Hub, the network or a damaged file make it raise
        raise ValueError(
            f"the data set {name!r}, split {split!r}, cannot be read ({' '.join(str(error).split())})."
        ) from error
    scalar = [c for c, kind in rows.features.items() if isinstance(kind, (datasets.Value, datasets.ClassLabel))]
    rows = rows.select_columns([c for c in rows.column_names if c in scalar])  # pictures are not decoded to be dropped
    return (_prompt(row, settings, f"{name}, row {i}") for i, row in enumerate(rows, 1))


def _prompt(row: dict[str, Any], settings: PromptSettings, where: str) -> Prompt:
    column = settings.prompt_column
    if column not in row:
        names = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{where} has no column {column!r}; its columns: {names}. Name it with --prompt-column.")
    text = row[column]
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise ValueError(f"{where}: the prompt is {text!r:.60}; give text, or the number of a class.")
    if isinstance(text, str) and not text.strip():
        raise ValueError(f"{where}: the prompt is empty; give text, or remove the row.")
    others = {name: value for name, value in row.items() if name != column}
    for name in OF_THE_JOB:
        if others.get(name) not in (None, ""):
            raise ValueError(
                f"{where} sets {name}, but all prompts of a job are drawn with one; give it as an option, one job for each "
                "value, or give the column another name to carry it along."
            )
    arguments = {name: str(others.pop(name) or "") for name in OF_A_ROW if name in others}
    return Prompt(text, carried({column: text, **others}, column, where), arguments)


def column_types(prompts: Iterable[Prompt]) -> dict[str, type]:
    """Type of every column other than the prompts; whole numbers among fractions are fractions.

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
                    "give one kind per column."
                )
    return {name: str if kind is type(None) else kind for name, kind in found.items()}
