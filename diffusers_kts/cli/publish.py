"""``kts publish``: a folder for the Hub, checked, listed, and uploaded."""

from pathlib import Path
from typing import Annotated

import typer


def publish(
    kind: Annotated[str, typer.Argument(help="scheduler, model, space or dataset.")],
    repo: Annotated[str | None, typer.Option(help="owner/name on the Hub; not needed with --dry-run.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Model: memorizing, generalizing or a folder. Dataset: output of kts generate. Space: its files."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Shaping that is saved with a scheduler or model.")] = "balanced",
    output: Annotated[Path, typer.Option(help="Folder to build: empty, or of the same command.")] = Path("kts-publish"),
    results: Annotated[Path, typer.Option(help="Folder of the JSON files that the cards cite.")] = Path("benchmarks/results"),
    public: Annotated[bool, typer.Option("--public", help="Visible to all; by default private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build and list, upload nothing.")] = False,
) -> None:
    """Build what goes on the Hub, refuse what should not, list it, upload it."""
    from diffusers.utils.logging import disable_progress_bar

    from ..publish.job import PublishSettings, run_publish

    disable_progress_bar()
    published = run_publish(PublishSettings(kind, repo, source, preset, output, results, public, dry_run))
    for name, size in published.files:
        print(f"{size:>12,}  {name}")
    total = sum(size for _, size in published.files)
    print(f"{total:>12,}  bytes in {len(published.files)} files, in {output}")
    print(f"Uploaded to {published.url}" if published.url else "Dry run: nothing was uploaded.")
