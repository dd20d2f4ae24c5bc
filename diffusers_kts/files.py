"""Files of a job that appear in its folder all at once, or not at all; and JSON that anyone may have written."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .errors import brief

T = TypeVar("T")


def parse_json(text: str | bytes, kind: type[T]) -> T:
    """The value of ``text``, which may be foreign or damaged.

    Raises:
        ValueError: not JSON, nested too deeply, or no ``kind``.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, kind):
        raise ValueError(f"it holds a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def read_json(path: Path, kind: type[T]) -> T:
    """The value of a JSON file.

    Raises:
        ValueError: there is no such file, or it is damaged or foreign.
    """
    try:
        return parse_json(path.read_bytes(), kind)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise ValueError(f"{path} cannot be read ({reason})") from error


@contextmanager
def written_together(output: Path, names: Sequence[str]) -> Iterator[Path]:
    """A hidden folder inside ``output``, whose files ``names`` move up when the block is done, in place of those of an earlier
    run; if it fails, nothing has happened.

    Raises:
        OSError: the folder cannot be written to.
    """
    existed = output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        holder = tempfile.TemporaryDirectory(prefix=".partial-", dir=output)
    except OSError as error:
        raise OSError(f"cannot write to {output} ({error.strerror}); give another folder with --output.") from error
    try:
        with holder as partial:
            yield Path(partial)
            for name in names:
                if (Path(partial) / name).exists():
                    (Path(partial) / name).replace(output / name)
                else:
                    (output / name).unlink(missing_ok=True)  # of an earlier run
    except BaseException:
        if not existed:
            output.rmdir()
        raise


def check_new(output: Path) -> None:
    """Raises FileExistsError unless ``output`` is a folder still to be made, or an empty one."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not an empty folder; give another one for the output.")


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files under the same names."""
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (one, other)]
    return names[0] == names[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names[0] if (one / name).is_file()
    )


@contextmanager
def new_folder(output: Path, repeatable: bool = False, keep: bool = True) -> Iterator[Path]:
    """A hidden folder next to ``output`` that becomes ``output`` when the block is done; if it fails, ``output`` is as it was.

    Args:
        output: the folder to be.
        repeatable: whether ``output`` may hold the same files already.
        keep: False for a dry run, which is built among the temporary files, checked in the same way, and thrown away.

    Raises:
        FileExistsError: ``output`` holds something.
        OSError: it cannot be written to.
    """
    if not repeatable:
        check_new(output)
    try:
        if keep:
            output.parent.mkdir(parents=True, exist_ok=True)
        holder = tempfile.TemporaryDirectory(prefix=".partial-", dir=output.parent if keep else None)
    except OSError as error:
        raise OSError(f"cannot write to {output.parent} ({error.strerror}); give another folder for the output.") from error
    with holder as partial:
        built = Path(partial) / "folder"  # with the usual permissions, which a temporary folder has not
        built.mkdir()
        yield built
        if repeatable and output.is_dir() and same_files(built, output):
            return
        check_new(output)
        if not keep:
            return
        if output.exists():
            output.rmdir()  # which a folder that has been filled meanwhile refuses
        built.rename(output)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a file; one that exists is replaced only once the new one is whole.

    Raises:
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist; make that folder first, or give another path.")
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
