"""What an output is (manifest), which of its blocks are there (records, written last), and who is drawing which (claims)."""

import dataclasses
import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import brief
from ..files import parse_json
from .plan import Plan
from .storage import PRIVATE, Store, Stored

try:
    import fcntl
except ImportError:  # Windows has no byte-range locks in the standard library: ranks keep to their own share there
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
FORMAT = "diffusers-kts/generate"
VERSION = 1
MANIFEST = f"{PRIVATE}/manifest.json"
ASSEMBLED = f"{PRIVATE}/assembled.json"
BLOCKS = f"{PRIVATE}/blocks"
FAILED = f"{PRIVATE}/failed"
CLAIMS = f"{PRIVATE}/claims"
PROMPTS = f"{PRIVATE}/prompts.jsonl"
PROBED = 2**40  # a byte that stands for no block
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # of file systems without any


@dataclass(frozen=True)
class Manifest:
    """What an output is.

    Attributes:
        identity (`dict`): every setting that decides what the samples are, and hashes of prompts and weights.
        plan (`Plan`): how it is cut.
        noted (`dict`): versions and device, which may differ without a refusal.
    """

    identity: dict[str, Any]
    plan: Plan
    noted: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Manifest":
        """Raises ValueError for JSON that `Ledger.begin` did not write."""
        identity, plan, noted = (_part(data, name, dict) for name in ("identity", "plan", "noted"))
        _part(identity, "format", str)
        _part(noted, "model", str)
        numbers = [_part(plan, field.name, int) for field in dataclasses.fields(Plan)]
        if min(numbers) < 1:
            raise ValueError(f"plan is {plan}")
        return cls(identity, Plan(*numbers), noted)

    def differences(self, other: "Manifest") -> list[str]:
        """One phrase for each setting that ``other`` has differently, other than the prompts."""
        names = list(dict.fromkeys([*self.identity, *other.identity]))
        pairs = [(name, self.identity.get(name), other.identity.get(name)) for name in names]
        different = [(name, theirs, ours) for name, theirs, ours in pairs if theirs != ours and name != "prompts"]
        return [f"{name} is {theirs!r} there, {ours!r} now" for name, theirs, ours in different]


@dataclass
class Record:
    """The commit of one block.

    Attributes:
        rows: the metadata of its files, by index. files: what it wrote.
        candidates: with --keep-top, what was decided about each. samples: how many were kept.
        calls, calls_saved: network calls summed over samples, and how many screening saved.
    """

    block: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Stored] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    samples: int = 0
    calls: int = 0
    calls_saved: int = 0

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Record":
        """Raises ValueError for JSON that `Ledger.commit` did not write."""
        numbers = {name: _part(data, name, int) for name in ("block", "samples", "calls", "calls_saved")}
        lists = {name: _part(data, name, list) for name in ("rows", "candidates")}
        if not all(isinstance(row, dict) for rows in lists.values() for row in rows):
            raise ValueError("a row is no mapping")
        files = _part(data, "files", dict)
        stored = {name: Stored(_part(file, "size", int), _part(file, "sha256", str)) for name, file in files.items()}
        return cls(**numbers, **lists, files=stored)  # type: ignore[arg-type]


class NotAnOutput(ValueError):
    """There is no readable manifest."""


class Ledger:
    """The private part of an output, under ``.kts``."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def manifest(self) -> Manifest | None:
        """The manifest, or None where nothing has begun.

        Raises:
            NotAnOutput: it is damaged, or of another release.
        """
        try:
            data = parse_json(self.store.read(MANIFEST), dict)
            if data.get("format") == FORMAT and data.get("version") == VERSION:
                return Manifest.of(data)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise NotAnOutput(
                f"{self.store.path(MANIFEST)} cannot be read ({brief(error)}); give another --output."
            ) from error
        if data.get("format") != FORMAT:
            raise NotAnOutput(f"{self.store.path(MANIFEST)} is not of kts generate; give another --output.")
        raise NotAnOutput(f"{self.store.url} has format version {data.get('version')}; this release reads {VERSION}.")

    def begin(self, manifest: Manifest, prompts: bytes) -> None:
        self.store.write(PROMPTS, prompts)
        self._write(MANIFEST, {"format": FORMAT, "version": VERSION} | dataclasses.asdict(manifest))

    def prompts(self) -> list[bytes]:
        """The prompts that the output was begun with, as `prompt_lines`; none of one made before they were kept."""
        try:
            return self.store.read(PROMPTS).splitlines(keepends=True)
        except FileNotFoundError:
            return []

    def commit(self, record: Record) -> None:
        """The last write of a block."""
        self._write(_numbered(BLOCKS, record.block), dataclasses.asdict(record))
        self.store.remove(_numbered(FAILED, record.block))

    def record(self, block: int) -> Record | None:
        """The commit of a block; None where there is none, or it is damaged."""
        try:
            record = Record.of(parse_json(self.store.read(_numbered(BLOCKS, block)), dict))
        except (FileNotFoundError, ValueError):
            return None
        return record if record.block == block else None

    def committed(self) -> set[int]:
        """Numbers of the blocks that have a record, without a look at their files."""
        return set(_numbers(self.store.names(BLOCKS)))

    def is_committed(self, block: int) -> bool:
        return self.store.exists(_numbered(BLOCKS, block))

    def revoke(self, block: int) -> None:
        """A block whose files are not as recorded counts as not drawn."""
        self.store.remove(_numbered(BLOCKS, block))

    def fail(self, block: int, run: str, reason: str) -> None:
        self._write(_numbered(FAILED, block), {"run": run, "reason": reason})

    def failure(self, block: int, run: str | None = None) -> str | None:
        """Why a block could not be drawn, in one run or in any; None if nobody tried in vain."""
        try:
            note = parse_json(self.store.read(_numbered(FAILED, block)), dict)
            return _part(note, "reason", str) if run in (None, note.get("run")) else None
        except (FileNotFoundError, ValueError):
            return None  # a damaged note tells nothing; the block is missing anyway

    def failures(self, run: str | None = None) -> dict[int, str]:
        """All blocks that could not be drawn, with the reason."""
        found = {number: self.failure(number, run) for number in sorted(_numbers(self.store.names(FAILED)))}
        return {number: reason for number, reason in found.items() if reason is not None}

    def _write(self, name: str, data: dict[str, Any]) -> None:
        self.store.write(name, json.dumps(data, allow_nan=False).encode())


class Claims:
    """Which blocks this process is drawing, as locks on the bytes of one file: they vanish with the process, however it
    ends, and hold between machines wherever the shared file system has POSIX locks (NFS, Lustre with ``flock``).

    On an object store, and on a file system without locks, `shared` is False, and each rank keeps to its own share.
    """

    def __init__(self, store: Store) -> None:
        self.shared = store.is_local and fcntl is not None
        self._file: int | None = None
        self._path = Path(store.path(CLAIMS))

    def open(self) -> None:
        if self.shared and self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, PROBED)
                self.release(PROBED)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self.close()
                self.shared = False

    def take(self, block: int) -> bool:
        """Whether the block is now this process's; False while another process has it."""
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block)
        except (BlockingIOError, PermissionError):
            return False
        return True

    @contextmanager
    def alone(self, number: int) -> Iterator[None]:
        """Wait until no other process is in the part of the job that ``number`` stands for, and keep them out."""
        while not self.take(number):
            time.sleep(0.05)
        try:
            yield
        finally:
            self.release(number)

    def release(self, block: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, block)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)  # which releases all
            self._file = None


def _numbered(folder: str, block: int) -> str:
    return f"{folder}/{block:08d}.json"


def _numbers(names: list[str]) -> list[int]:
    """Of the files that `_numbered` names; strangers, such as ``.DS_Store``, are passed over."""
    return [int(found[1]) for name in names if (found := re.search(r"/(\d{8})\.json$", name))]


def _part(data: Any, name: str, kind: type[T]) -> T:
    """``data[name]``, once it is a ``kind``; raises ValueError."""
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.60} where a {kind.__name__} belongs")
    return value
