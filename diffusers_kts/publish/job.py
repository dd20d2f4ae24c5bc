"""``kts publish``: builds the folder of a repository, checks it, and uploads it."""

from dataclasses import dataclass

from ..files import new_folder
from ..hub import upload
from .folders import BUILDERS
from .refusals import problems
from .settings import REPO_TYPES, PublishSettings

SHOWN = 8  # problems named at once


@dataclass(frozen=True)
class Published:
    """Files of the folder with their sizes in bytes, by name; the address where they went, None for a dry run."""

    files: list[tuple[str, int]]
    url: str | None


def run_publish(settings: PublishSettings) -> Published:
    """Build a hidden folder, check it, let it become ``settings.output``, upload. What is refused, like a dry run, leaves
    nothing behind.

    Raises:
        ValueError: the source is unreadable, or something in the folder must not be uploaded.
        OSError: the output is not empty, or the Hub refuses.
    """
    with new_folder(settings.output, repeatable=True, keep=not settings.dry_run) as built:
        BUILDERS[settings.kind](built, settings)
        found = problems(built)
        if found:
            more = f" And {len(found) - SHOWN} more." if len(found) > SHOWN else ""
            raise ValueError(f"nothing is published: {' '.join(found[:SHOWN])}{more}")
        files = sorted((str(p.relative_to(built)), p.stat().st_size) for p in built.rglob("*") if p.is_file())
    if settings.dry_run or settings.repo is None:
        return Published(files, None)
    return Published(files, upload(settings.output, settings.repo, REPO_TYPES[settings.kind], settings.public))
