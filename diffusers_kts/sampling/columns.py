"""The columns of the metadata: ours with their types, and those carried over from the prompts, as readers can load them."""

import math
from collections.abc import Mapping
from typing import Any

Scalar = str | int | float | bool | None
COLUMNS: dict[str, type] = {
    "file_name": str, "frame": int, "index": int, "prompt": str, "label": int, "class_name": str, "negative_prompt": str,
    "prompt_index": int, "candidate": int, "rank": int, "seed": int, "generator_seed": int,
    "path_energy_total": float, "path_energy_early": float, "path_energy_late": float,
    "model_energy_total": float, "model_energy_early": float, "model_energy_late": float, "per_dim": float, "excess": float,
    "memorization_probability": float, "flagged": bool, "redraws": int,
    "network_calls": int, "guidance_scale": float, "scheduler": str,
    "alpha_0": float, "beta_0": float, "tau_split": float, "k": float,
    "early_schedule": str, "late_schedule": str, "touchdown": float,
}  # fmt: skip
RESERVED = {*COLUMNS, "image", "video"}
INT64 = range(-(2**63), 2**63)


def carried(row: Mapping[str, Any], prompt_column: str, where: str) -> dict[str, Scalar]:
    """The columns of a prompt's row that are text or numbers, next to the prompt, under the names that they are written with:
    one of ours gets ``prompts_`` before it, and ``file_name``, which `datasets` takes for pictures, becomes ``filename``. A
    number that is NaN is missing.

    Args:
        row: the row of a prompt.
        prompt_column: which column is the prompt.
        where: names the row in an error.

    Raises:
        ValueError: a value that readers of the metadata could not load, or two columns with one name.
    """
    check_text(row.get(prompt_column), f"{where}: the prompt")
    found: dict[str, Scalar] = {}
    for column, value in row.items():
        if column == prompt_column or not isinstance(value, Scalar):
            continue
        name = _written_name(str(column))
        if name in found:
            raise ValueError(f"{where} has two columns that are written as {name!r}; rename one.")
        check_text(name, f"{where}: the name of column {name!a}")
        found[name] = _checked(value, f"{where}: {name}")
    return found


def check_text(value: Any, what: str) -> None:
    """Raises ValueError for text that is not Unicode."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} holds half a character ({value[error.start]!a}); save it as UTF-8.") from None


def _written_name(column: str) -> str:
    if column in RESERVED:
        return f"prompts_{column}".replace("file_name", "filename")
    return column.replace("file_name", "filename") if column.endswith(("_file_name", "file_names")) else column


def _checked(value: Scalar, what: str) -> Scalar:
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{what} is {value}; give a finite number.")
        return None if math.isnan(value) else value
    if isinstance(value, int) and value not in INT64:
        raise ValueError(f"{what} is {value}, which no 64-bit integer holds; write it as text.")
    check_text(value, what)
    return value


def check_gaps(columns: Mapping[str, type], prompts: list[Mapping[str, Scalar]], format: str) -> None:
    """Raises ValueError for a number that is missing in a row of WebDataset shards, of which `datasets` takes the types of
    columns from a few rows. Text that is missing is written as empty."""
    for name, kind in columns.items() if format == "webdataset" else ():
        missing = [number for number, row in enumerate(prompts, 1) if row.get(name) is None]
        if missing and kind is not str:
            raise ValueError(
                f"column {name!r} has no value at prompt {missing[0]}, which readers of webdataset cannot load; fill it, or "
                "give --format parquet."
            )


def as_written(value: Scalar, kind: type, format: str) -> Scalar:
    """``value`` in a column of type ``kind``: every row has the same type, from which readers of JSON take the column's."""
    if value is None:
        return "" if kind is str and format != "parquet" else None
    return float(value) if kind is float else value
