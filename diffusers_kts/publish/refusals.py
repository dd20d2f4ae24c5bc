"""What may not be uploaded: secrets, paths of the machine it was built on, pickles, links, files over the limits, and cards
whose numbers have no source."""

import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..files import read_json

MAX_FILE = 5 * 10**9  # bytes; the Hub takes more in one file, but asks for parts
MAX_FILES = 100_000  # of a repository, as the Hub advises
MAX_IN_FOLDER = 10_000
# what a published folder is made of; anything else has come there by accident
SUFFIXES = {".md", ".py", ".json", ".jsonl", ".txt", ".csv", ".yaml", ".yml", ".jinja", ".model", ".npz", ".safetensors"}
SUFFIXES |= {".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg", ".mp4", ".tar", ".parquet", ".typed", ".html", ".css"}
NAMES = re.compile(r"^(LICENSE|LICENCE|NOTICE|CITATION)[\w.-]*$|^\.gitattributes$", re.IGNORECASE)
PRIVATE_NAMES = re.compile(
    r"^(\.env.*|\.netrc|\.git|\.git-credentials|\.ssh|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|p12|key|keystore))$"
)
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "an AWS key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password": r"(?i)\b(password|passwd|secret|api_key|access_token)\b[\"']?\s*[:=]\s*[\"'][^\"'\s]{8,}[\"']",
}
ABSOLUTE = re.compile(
    r"(?<![\w.:/~}-])/(home|root|Users|tmp|work|mnt|media|opt|var|srv|scratch|private|Volumes)/[\w.@-]+|\b[A-Z]:\\\\?\w+"
)


def problems(folder: Path, sources: Iterable[Path] = ()) -> list[str]:
    """One sentence for each reason not to upload ``folder``.

    Args:
        folder: what would be uploaded.
        sources: JSON files with the numbers of its card, in addition to those in the folder.
    """
    found = list(_files(folder))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if (text := _text(path)) is None:
            continue
        name = path.relative_to(folder)
        for what, pattern in SECRETS.items():
            if match := re.search(pattern, text):
                found.append(f"{name} line {_line(text, match)} holds {what}; take it out, and revoke it.")
        if match := ABSOLUTE.search(text):
            found.append(f"{name} line {_line(text, match)} names {match[0]}, a path of one machine; make it relative.")
    card = folder / "README.md"
    if not card.is_file():
        found.append("README.md is missing; write the card first.")
    else:
        inside = [path for path in folder.rglob("*.json") if path.is_file() and path.stat().st_size < 10**7]
        for number, line in unsourced_numbers(card.read_text(), [*inside, *sources]):
            found.append(f"README.md line {line} says {number}, which no JSON file next to it holds; cite its source.")
    return found


def _text(path: Path) -> str | None:
    """The text of a file, whatever its name; None for anything else."""
    with path.open("rb") as file:
        head = file.read(8192)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return path.read_text(encoding="utf-16", errors="replace")
    return None if b"\0" in head else path.read_text(encoding="utf-8", errors="replace")


def _is_pickle(path: Path) -> bool:
    """By ending, or by content: a bare pickle, what `torch.save` writes, an array of objects."""
    if path.suffix.lower() in PICKLES:
        return True
    with path.open("rb") as file:
        head = file.read(256)
        if not zipfile.is_zipfile(file):
            return bool(re.match(rb"\x80[\x02-\x05]", head) or (head.startswith(b"\x93NUMPY") and b"'|O'" in head))
        try:
            with zipfile.ZipFile(file) as archive:
                heads = {name: archive.open(name).read(256) for name in archive.namelist() if name.endswith((".npy", ".pkl"))}
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
            return True  # what cannot be looked into
    return any(name.endswith(".pkl") or b"'|O'" in head for name, head in heads.items())


def _line(text: str, match: re.Match) -> int:
    return text.count("\n", 0, match.start()) + 1


def _files(folder: Path) -> Iterator[str]:
    paths = sorted(folder.rglob("*"))
    files = [path for path in paths if path.is_file()]
    if len(files) > MAX_FILES:
        yield f"there are {len(files)} files; the Hub advises at most {MAX_FILES}: pack them (--format webdataset)."
    inside: dict[Path, int] = {}
    for path in paths:
        name = path.relative_to(folder)
        if path.is_symlink():
            yield f"{name} is a link; put the file itself there."
        if PRIVATE_NAMES.match(path.name):
            yield f"{name} is private by its name; remove it."
        elif path.is_file():
            if path.suffix not in PICKLES and path.suffix.lower() not in SUFFIXES and not NAMES.match(path.name):
                yield f"{name} is none of what a published folder is made of; move it elsewhere."
            if _is_pickle(path):
                yield f"{name} is a pickle, which can run code; save safetensors."
        if path.is_file():
            inside[path.parent] = inside.get(path.parent, 0) + 1
            if path.stat().st_size > MAX_FILE:
                yield f"{name} has {path.stat().st_size / 1e9:.1f} GB; the limit is {MAX_FILE / 1e9:g} GB: save it in parts."
    for parent, count in inside.items():
        if count > MAX_IN_FOLDER:
            yield f"{parent.relative_to(folder) or '.'} holds {count} files; the Hub takes {MAX_IN_FOLDER} in a folder."


# Measured figures: with a decimal point, or in per cent. Whole numbers name sizes and settings, as 95 % names an interval.
FIGURE = re.compile(r"(?<![\w./-])-?\d+(?:\.\d+(?!\.?\d*\.)|(?=\s?%))(?![\w/]|\.\d)")
NOT_PROSE = re.compile(
    r"\A---\n.*?\n---\n|```.*?```|`[^`]*`|<!--.*?-->|\(https?://[^)]*\)|https?://\S+|arXiv[ :]\d{4}\.\d+|95 %(?= interval)",
    re.DOTALL,
)


def unsourced_numbers(card: str, sources: Iterable[Path]) -> list[tuple[str, int]]:
    """Measured figures in the prose and tables of ``card`` that occur in none of the JSON ``sources``, with their lines.

    A figure agrees with a number of a source if that rounds to it, itself or times 100.
    """
    known = {number for path in sources for number in _numbers(read_json(path, object))}
    prose = NOT_PROSE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), card)
    missing = []
    for match in FIGURE.finditer(prose):
        digits = len(match[0].partition(".")[2])
        value, half = float(match[0]), 0.5000001 * 10**-digits
        if not any(abs(value - number) <= half or abs(value - 100 * number) <= half for number in known):
            missing.append((match[0], _line(prose, match)))
    return missing


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, (int, float)):
        yield float(value)
    else:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
