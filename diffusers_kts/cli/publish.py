"""``kts publish``: a folder for the Hub, checked, listed, and uploaded."""

from ..publish.settings import PublishSettings
from .options import options_of


@options_of(PublishSettings)
def publish(settings: PublishSettings) -> None:
    """Build the folder of a model with its shaping, or of a data set, for the Hub; refuse what must not go up, list it, upload
    it. The same command may be repeated."""
    from ..publish.job import run_publish

    published = run_publish(settings)
    for name, size in published.files:
        print(f"{size:>12,}  {name}")
    total = sum(size for _, size in published.files)
    print(f"{total:>12,}  bytes in {len(published.files)} files")
    print(f"Uploaded to {published.url}" if published.url else "Dry run: nothing was written or uploaded.")
