"""The settings of ``kts publish``."""

from dataclasses import dataclass
from pathlib import Path

from ..generate.settings import GenerateSettings
from ..hub import check_repo
from ..sampling.settings import OUTPUT, ShapingSettings, inherited, setting

REPO_TYPES = {"scheduler": "model", "model": "model", "space": "space", "dataset": "dataset"}  # by what is published


@dataclass(frozen=True)
class PublishSettings(ShapingSettings):
    """The settings of `run_publish`; each field's meaning is its ``help``, which is also the command line's.

    Maintainers also publish ``kind`` "scheduler" and "space", which are built from the package.

    Raises:
        ValueError: a setting is wrong, or an upload has no repository.
    """

    kind: str = setting("", "model: a pipeline with its shaping. dataset: an output of kts generate.", flag="")
    source: str | None = setting(None, "Folder of the pipeline (or an embedded model), or output of kts generate.", OUTPUT)
    repo: str | None = setting(None, "owner/name on the Hub; not needed with --dry-run.", OUTPUT)
    public: bool = inherited(GenerateSettings, "public", False)
    preset: str | None = inherited(
        ShapingSettings, "preset", "balanced", help="Shaping saved with a model: as in kts generate. Default: balanced."
    )
    output: Path = setting(Path("kts-publish"), "Folder to build: empty, or of the same command.", OUTPUT)
    results: Path = setting(
        Path("benchmarks/results"), "Folder of the JSON files that the project's cards cite.", OUTPUT, hidden=True
    )
    dry_run: bool = inherited(GenerateSettings, "dry_run", False, help="Check everything and list the files; write nothing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in REPO_TYPES:
            raise ValueError(f"kind is {self.kind!r}; choose model or dataset.")
        if self.repo is None and not self.dry_run:
            raise ValueError("no --repo to upload to; give owner/name, or --dry-run to check only.")
        if self.repo is not None:
            check_repo(self.repo)
