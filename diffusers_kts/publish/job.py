"""``kts publish``: builds the folder of a repository, checks it, and uploads it."""

from dataclasses import dataclass
from pathlib import Path

from ..files import new_folder
from ..hub import check_repo, upload
from ..presets import PRESETS
from .folders import BUILDERS, REPO_TYPES
from .refusals import problems

SHOWN = 8  # problems named at once


@dataclass(frozen=True)
class PublishSettings:
    """What `run_publish` does.

    Args:
        kind (`str`): "scheduler", "model", "space" or "dataset".
        repo (`str`, *optional*): ``owner/name``; needed for an upload.
        source (`str`, *optional*): what it is built from, see `diffusers_kts.publish.folders`.
        preset (`str`): shaping saved with a scheduler or model, from `PRESETS`.
        output (`Path`): folder to build.
        results (`Path`): JSON files the cards cite.
        public (`bool`): visible to all.
        dry_run (`bool`): build and check only.

    Raises:
        ValueError: unknown kind or preset, or an upload without a repository. OSError: the folder is not empty.
    """

    kind: str
    repo: str | None = None
    source: str | None = None
    preset: str = "balanced"
    output: Path = Path("kts-publish")
    results: Path = Path("benchmarks/results")
    public: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.kind not in BUILDERS:
            raise ValueError(f"kind is {self.kind!r}; choose from {', '.join(BUILDERS)}.")
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; choose from {', '.join(PRESETS)}.")
        if self.repo is None and not self.dry_run:
            raise ValueError("no --repo to upload to; give owner/name, or --dry-run to build only.")
        if self.repo is not None:
            check_repo(self.repo)


@dataclass(frozen=True)
class Published:
    """Files of the folder with their sizes in bytes, by name; the address where they went, None for a dry run."""

    files: list[tuple[str, int]]
    url: str | None


def run_publish(settings: PublishSettings) -> Published:
    """Build a hidden folder, check it, let it become ``settings.output``, upload. What is refused leaves nothing behind.

    Raises:
        ValueError: the source is unreadable, or something in the folder must not be uploaded. OSError: the Hub refuses.
    """
    with new_folder(settings.output, repeatable=True) as built:
        BUILDERS[settings.kind](built, settings.source, settings.preset, settings.results)
        found = problems(built)
        if found:
            more = f" And {len(found) - SHOWN} more." if len(found) > SHOWN else ""
            raise ValueError(f"nothing is published: {' '.join(found[:SHOWN])}{more}")
    folder = settings.output
    files = sorted((str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
    url = None
    if not settings.dry_run and settings.repo is not None:
        url = upload(folder, settings.repo, REPO_TYPES[settings.kind], settings.public)
    return Published(files, url)
