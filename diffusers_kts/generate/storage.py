"""Where the output lies: a local folder or any fsspec URL. A file is there whole or not at all.

Locally it is written to ``.kts/partial`` and renamed; an object store puts whole objects.
"""

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp

import fsspec
from fsspec.implementations.local import LocalFileSystem

PRIVATE = ".kts"  # hidden from `datasets` and from the Hub's viewer
PARTIAL = f"{PRIVATE}/partial"


@dataclass(frozen=True)
class Stored:
    """Size in bytes and SHA-256 of a file, as it was written."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "Stored":
        return cls(len(data), hashlib.sha256(data).hexdigest())


class Store:
    """A folder of files under ``url``; names are relative, with forward slashes.

    Raises:
        ValueError: fsspec does not know the URL.
    """

    def __init__(self, url: str) -> None:
        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"output {url!r} cannot be opened ({error}); give a folder or an fsspec URL.") from error
        self.url, self.root = url, root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def write(self, name: str, data: bytes) -> Stored:
        """Put a whole file in place of any earlier one."""
        if not self.is_local:
            self.fs.pipe_file(self.path(name), data)
            return Stored.of(data)
        partial = self.partial()
        try:
            partial.write_bytes(data)
            self.place(partial, name)
        except BaseException:
            discard(partial)
            raise
        return Stored.of(data)

    def partial(self) -> Path:
        """A local path to write a large file to, before `place` or `discard`."""
        if not self.is_local:
            handle, path = mkstemp(prefix="kts-")
            os.close(handle)
            return Path(path)
        path = self.path(f"{PARTIAL}/{uuid.uuid4().hex}")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path)

    def place(self, partial: Path, name: str) -> None:
        """The file written to ``partial`` becomes ``name``, whole."""
        target = self.path(name)
        if not self.is_local:
            self.fs.put_file(str(partial), target)
            discard(partial)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(self.path(name))

    def stored(self, name: str) -> Stored:
        """Size and hash of a file as it is now, read in pieces."""
        digest, size = hashlib.sha256(), 0
        with self.fs.open(self.path(name), "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
        return Stored(size, digest.hexdigest())

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None where there is none."""
        self.fs.invalidate_cache()
        try:
            return self.fs.info(self.path(name))["size"]
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        self.fs.invalidate_cache()
        return self.fs.exists(self.path(name))

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def names(self, folder: str) -> list[str]:
        """Names of the files in one folder."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.path(folder)):
            return []
        return [path.removeprefix(self.root + "/") for path in self.fs.ls(self.path(folder), detail=False)]

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Every file below ``folder``, with its size."""
        self.fs.invalidate_cache()
        top = self.path(folder).rstrip("/")
        if not self.fs.exists(top):
            return {}
        found = self.fs.find(top, detail=True, withdirs=False)
        return {path.removeprefix(self.root + "/"): info["size"] for path, info in found.items()}

    def free_space(self) -> int | None:
        """Bytes free on the local disk; None where nobody knows."""
        if not self.is_local:
            return None
        folder = Path(self.root)
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def clear_partial(self) -> None:
        """Remove what processes that were killed had begun to write."""
        if self.is_local:
            shutil.rmtree(self.path(PARTIAL), ignore_errors=True)


def discard(partial: Path) -> None:
    with suppress(OSError):
        partial.unlink(missing_ok=True)
