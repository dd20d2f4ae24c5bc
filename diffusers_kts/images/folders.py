"""The pictures of a folder, in order, from each form that one may have."""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import brief
from ..files import parse_json
from .arrays import ImageArray
from .pictures import OTHER_SUFFIXES, SUFFIXES, Picture

METADATA = "metadata.jsonl"
READ_AT_A_TIME = 64
Reader = Callable[[], Iterator[Picture]]


def array_reader(array: ImageArray, names: list[str]) -> Reader:
    def pictures() -> Iterator[Picture]:
        number = iter(names)
        for batch in array.batches(READ_AT_A_TIME):
            yield from (Picture(next(number), pixels) for pixels in batch)

    return pictures


def folder_reader(folder: Path) -> Reader:
    """Starts reading the pictures of ``folder``, whose form is recognized by its names: ``metadata.jsonl``; WebDataset shards
    ``shards/*.tar``; Parquet files ``data/*.parquet``; any folder with pictures; Parquet or Arrow files at its top, as
    `datasets` writes them."""
    if (folder / METADATA).is_file():
        return lambda: _described(folder)
    if shards := sorted(folder.glob("shards/*.tar")):
        return lambda: _shards(shards)
    if tables := sorted(folder.glob("data/*.parquet")):
        return lambda: _tables(tables)
    if files := picture_files(folder):
        return lambda: (Picture(file.relative_to(folder).as_posix(), file) for file in files)
    return lambda: _tables(sorted([*folder.glob("*.parquet"), *folder.glob("*.arrow")]))


def picture_files(folder: Path) -> list[Path]:
    """The pictures in ``folder`` and below it, in torch-fidelity's order: that of their real paths as text.

    Hidden files and folders (`.ipynb_checkpoints`, macOS's `._*`) are left out.
    """
    return _files(folder, SUFFIXES)


def check_formats(folder: Path) -> None:
    """Raises ValueError for pictures in ``folder`` that `folder_reader` would leave out, as it reads no such format."""
    if not (folder / METADATA).is_file() and (left_out := _files(folder, OTHER_SUFFIXES)):
        raise ValueError(
            f"{len(left_out)} pictures in {folder} are of a format that is not read, such as {left_out[0].name}; save them as "
            ".png, or take them out."
        )


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if name.lower().endswith(suffixes) and not name.startswith(".")]
    return sorted(found, key=os.path.realpath)


def _described(folder: Path) -> Iterator[Picture]:
    """By ``metadata.jsonl``; blank lines and a byte order mark are skipped, as `datasets` does."""
    with (folder / METADATA).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not (line := line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                continue
            try:
                row = parse_json(line, dict)
                name = row["file_name"]
                if not isinstance(name, str):
                    raise ValueError(f"file_name is {name!r}, no text")
            except (ValueError, KeyError) as error:
                raise ValueError(f"line {number} of {folder / METADATA} has no file_name ({brief(error)}); fix it.") from error
            yield Picture(name, folder / name, row)


def _shards(shards: list[Path]) -> Iterator[Picture]:
    """A sample is members with one stem, next to each other: a picture, and perhaps its row."""
    for shard in shards:
        try:
            with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                stem, sample = "", dict[str, Any]()
                for member in tar:
                    if member.isdir():
                        continue
                    content = tar.extractfile(member) if member.isfile() else None
                    if content is None:
                        raise tarfile.TarError(f"{member.name} is a link")
                    start, _, ending = member.name.rpartition(".")
                    if start != stem:
                        yield from _sample(sample)
                        stem, sample = start, {}
                    if ending == "json":
                        sample["row"] = parse_json(content.read(), dict)
                    elif f".{ending.lower()}" in (*SUFFIXES, ".mp4"):
                        sample |= {"name": member.name, "data": content.read()}
                yield from _sample(sample)
                file.seek(tar.offset)  # where tarfile found no further member, for whatever reason
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.TarError(f"it is cut or damaged after {stem or 'its start'}")
        except (tarfile.TarError, OSError, ValueError) as error:
            raise ValueError(f"the shard {shard} cannot be read ({brief(error)}); draw or copy it again.") from error


def _sample(parts: dict[str, Any]) -> Iterator[Picture]:
    if "data" in parts:
        yield Picture(**parts)


def _tables(files: list[Path]) -> Iterator[Picture]:
    import pyarrow as pa

    for file in files:
        try:
            number = 0
            for batch in _record_batches(file):
                column = _picture_column(batch.schema)
                for row in batch.to_pylist():
                    yield _from_table(file, number, row.pop(column), row)
                    number += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read ({brief(error)}); draw or copy it again.") from error


def _record_batches(file: Path) -> Iterable[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".arrow":
        with pa.OSFile(str(file)) as stored, pa.ipc.open_stream(stored) as stream:
            for batch in stream:
                yield from (batch.slice(i, READ_AT_A_TIME) for i in range(0, len(batch), READ_AT_A_TIME))
    else:
        with pq.ParquetFile(file) as table:
            yield from table.iter_batches(READ_AT_A_TIME)


def _picture_column(schema: Any) -> str:
    """The column of pictures: of ``{bytes, path}``, as `datasets` has them, or of bytes.

    Raises:
        ValueError: there is none, or there are several and none is called image.
    """
    import pyarrow.types as types

    found = [
        field.name
        for field in schema
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    if len(found) == 1 or "image" in found:
        return "image" if "image" in found else found[0]
    raise ValueError(f"its columns are {', '.join(schema.names) or 'none'}; one of pictures must be there, called image")


def _from_table(file: Path, number: int, media: Any, row: dict[str, Any]) -> Picture:
    stored = media if isinstance(media, dict) else {"bytes": media}
    path = stored.get("path")
    data = stored["bytes"] if stored["bytes"] is not None or path is None else file.parent / path
    if data is None:
        raise ValueError(f"row {number} has no picture")
    return Picture(path or f"{file.name}[{number}]", data, row)
