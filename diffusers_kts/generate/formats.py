"""The three forms of an output: a folder of files with ``metadata.jsonl``, WebDataset shards, Parquet files.

File names come from the index. One writer writes one block; samples are given to it batch by batch, encoded.
"""

import importlib.util
import io
import json
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from ..errors import install
from ..sampling.columns import COLUMNS
from .media import ENDINGS
from .plan import Block
from .settings import GenerateSettings
from .storage import Store, Stored, discard

PER_FOLDER = 1000  # the Hub takes at most 10,000 files a folder
Encoded = tuple[dict[str, Any], bytes]  # the row of a file, with its file_name, and the file


class BlockWriter(Protocol):
    """Takes the encoded samples of a block in order; what it has written counts only once the block is committed."""

    def add(self, samples: list[Encoded]) -> None: ...

    def finish(self) -> dict[str, Stored]:
        """Put the rest in place; sizes and hashes of all files."""

    def discard(self) -> None:
        """The block failed; leave nothing half-written."""


def file_names(index: int, kind: str, format: str, count: int) -> list[str]:
    """Names of the ``count`` files of a sample: one, or one a frame."""
    number = f"{index:08d}"
    if format != "imagefolder":
        return [f"{number}.{ENDINGS[kind]}"]
    folder = {"image": "images", "mp4": "videos", "frames": "frames"}[kind] + f"/{index // PER_FOLDER:05d}/{number}"
    return [f"{folder}/{i:05d}.png" for i in range(count)] if kind == "frames" else [f"{folder}.{ENDINGS[kind]}"]


def check_packages(settings: GenerateSettings, video: bool) -> None:
    """Raises ValueError if the settings need a package that is not installed, before anything is drawn."""
    needed = ["pyarrow"] if settings.format == "parquet" or settings.traces else []
    needed += ["pandas"] if settings.traces else []
    needed += ["imageio", "imageio_ffmpeg"] if video and settings.video == "mp4" else []
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is missing, which these settings need; {install('generate')}.")


def block_writer(format: str, store: Store, block: Block, columns: Mapping[str, type]) -> BlockWriter:
    if format == "webdataset":
        return WebDatasetWriter(store, f"shards/{block.number:06d}.tar")
    if format == "parquet":
        return ParquetWriter(store, f"data/{block.number:06d}.parquet", columns)
    return FolderWriter(store)


class FolderWriter:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.files: dict[str, Stored] = {}

    def add(self, samples: list[Encoded]) -> None:
        for row, data in samples:
            self.files[row["file_name"]] = self.store.write(row["file_name"], data)

    def finish(self) -> dict[str, Stored]:
        return self.files

    def discard(self) -> None:
        pass  # whole files of a block that is not committed are written again


class _FileWriter:
    """One large file per block, written elsewhere and moved when whole."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.partial = store.partial()

    def finish(self) -> dict[str, Stored]:
        self._close()
        self.store.place(self.partial, self.name)
        return {self.name: self.store.stored(self.name)}

    def discard(self) -> None:
        with suppress(Exception):  # the disk may be full, and closing writes
            self._close()
        discard(self.partial)

    def _close(self) -> None:
        raise NotImplementedError


class WebDatasetWriter(_FileWriter):
    """A tar file with ``<index>.png`` (or mp4) and ``<index>.json`` per sample, the same bytes for the same samples."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store, name)
        self.tar = tarfile.open(self.partial, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (closed in _close)

    def add(self, samples: list[Encoded]) -> None:
        for row, data in samples:
            self._member(row["file_name"], data)
            self._member(f"{row['index']:08d}.json", json.dumps(row).encode())

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # modification time 0, no owner
        member.size = len(data)
        self.tar.addfile(member, io.BytesIO(data))

    def _close(self) -> None:
        self.tar.close()


class ParquetWriter(_FileWriter):
    """The layout that `datasets` and the Hub's viewer show as pictures: a column of ``{bytes, path}``, and the row."""

    def __init__(self, store: Store, name: str, columns: Mapping[str, type]) -> None:
        super().__init__(store, name)
        self.columns = columns
        self.writer: Any = None

    def add(self, samples: list[Encoded]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        media = "image" if samples[0][0]["file_name"].endswith("png") else "video"
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.partial, _schema(list(samples[0][0]), media, self.columns))
        rows = [{media: {"bytes": data, "path": row["file_name"]}} | row for row, data in samples]
        self.writer.write_table(pa.Table.from_pylist(rows, self.writer.schema))

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _schema(names: list[str], media: str, columns: Mapping[str, type]) -> Any:
    """One schema for all files: the types of our columns, and of the prompts' ``columns``."""
    import pyarrow as pa

    arrow = {str: ("string", pa.string()), int: ("int64", pa.int64()), float: ("float64", pa.float64())}
    arrow[bool] = ("bool", pa.bool_())
    fields = [pa.field(media, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    features: dict[str, Any] = {media: {"_type": media.capitalize()}}
    for name in names:
        name_of_type, kind = arrow[COLUMNS.get(name) or columns[name]]
        fields.append(pa.field(name, kind))
        features[name] = {"dtype": name_of_type, "_type": "Value"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
