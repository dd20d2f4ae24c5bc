"""The settings of a batch job, from which the YAML file, the command line and the identity of a run are made."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import yaml

from ..models import NAMES
from ..sampling.settings import (
    DETECTOR,
    DISTRIBUTED,
    OUTPUT,
    PROMPTS,
    SELECTION,
    PromptSettings,
    SamplingSettings,
    ShapingSettings,
    inherited,
    setting,
)

MAX_REDRAWS = 4
FORMATS = ("imagefolder", "webdataset", "parquet")
ENERGIES = tuple(f"{kind}_energy_{part}" for kind in ("path", "model") for part in ("total", "early", "late"))
STATISTICS = (*ENERGIES, "per_dim")


@dataclass(frozen=True)
class GenerateSettings(ShapingSettings, SamplingSettings, PromptSettings):
    """The settings of `run_generate`; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is out of range, of the wrong type, or contradicts another.
    """

    output: str = setting("", "Folder, or any fsspec URL (s3://, gs://, hf://, memory://).", identity=False)
    model: str = inherited(SamplingSettings, "model", NAMES[1])
    images_per_prompt: int = setting(1, "Samples (or, with --keep-top, candidates) of each prompt.", PROMPTS, least=1)
    format: str = setting("imagefolder", "Of the output.", OUTPUT, choices=FORMATS)
    shard_size: int = setting(
        256, "Samples per file of webdataset and parquet, which is also what a crash can cost.", OUTPUT, least=1
    )
    video: str = setting("mp4", "How to write videos: as MP4, or as PNG frames.", OUTPUT, choices=("mp4", "frames"))
    fps: int = setting(16, "Frames per second of the MP4.", OUTPUT, least=1)
    traces: bool = setting(False, "Also write every step's power, eta and t: traces/*.parquet.", OUTPUT)
    writers: int = setting(4, "Threads that encode and write.", OUTPUT, identity=False, least=1)
    recheck: bool = setting(
        False, "When resuming, compare the content of every file, not only its size.", OUTPUT, identity=False
    )
    log_with: str | None = setting(None, "A tracker of accelerate: tensorboard, wandb, ...", OUTPUT, identity=False)
    push_to_hub: str | None = setting(
        None, "Upload the finished data set to this Hub repository, owner/name.", OUTPUT, identity=False
    )
    public: bool = setting(False, "Make a new Hub repository public.", OUTPUT, identity=False)
    dry_run: bool = setting(False, "Check everything and print the plan; draw and write nothing.", OUTPUT, identity=False)
    keep_top: int | None = setting(None, "Keep this many of each prompt's candidates, ranked by --by.", SELECTION, least=1)
    by: str = setting("path_energy_total", "Energy that candidates are ranked by.", SELECTION, choices=STATISTICS)
    lowest: bool = setting(False, "Rank the lowest energy first.", SELECTION)
    screen_steps: int | None = setting(
        None,
        "Steps after which the candidates that rank last by the energy so far are dropped.",
        SELECTION,
        least=1,
    )
    screen_keep: int | None = setting(
        None, "Candidates of each prompt that remain after screening. Default: half.", SELECTION, least=1
    )
    detector: str | None = setting(
        None, "The detector.safetensors of kts audit; with it, steps are Euler's.", DETECTOR, identity=False
    )
    on_memorized: str | None = setting(
        None,
        "What to do with samples that the detector flags: draw them again, let them touch down, or only say so.",
        DETECTOR,
        choices=("redraw", "touchdown", "flag"),
    )
    detector_threshold: float | None = setting(
        None, "Probability from which a sample is flagged, between 0 and 1. Default: 0.5.", DETECTOR
    )
    detect_at: float | None = setting(
        None, "Flow time up to which the detector reads. Default: 0.6 for touchdown, else 1, the whole run.", DETECTOR
    )
    max_redraws: int | None = setting(
        None, f"Redraws of a sample, after which it stays, flagged. Default: {MAX_REDRAWS}.", DETECTOR, least=1
    )
    shard: str | None = setting(
        None, "Do part I of N only, 'I/N' from 0 (SLURM arrays on object stores).", DISTRIBUTED, identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output and not self.dry_run:
            raise ValueError("there is no output; give a folder or URL with --output.")
        if self.video == "frames" and self.format != "imagefolder":
            raise ValueError(f"video frames cannot go into {self.format}; give --format imagefolder, or --video mp4.")
        self._check_selection()
        self._check_detector()
        self.part  # noqa: B018 (raises)

    def _check_selection(self) -> None:
        if self.keep_top is not None and self.keep_top > self.images_per_prompt:
            raise ValueError(f"keep_top is {self.keep_top} of {self.images_per_prompt} images_per_prompt; keep fewer.")
        if self.screen_steps is None:
            if self.screen_keep is not None:
                raise ValueError("screen_keep needs screen_steps; give the number of steps after which to screen.")
            return
        if self.keep_top is None:
            raise ValueError("screen_steps needs keep_top; give the number of samples to keep of each prompt.")
        if not self.keep_top <= self.survivors <= self.images_per_prompt:
            raise ValueError(
                f"screen_keep is {self.survivors}; give a number from keep_top ({self.keep_top}) to images_per_prompt "
                f"({self.images_per_prompt})."
            )

    def _check_detector(self) -> None:
        if self.detector is None:
            for name in ("on_memorized", "detector_threshold", "detect_at", "max_redraws"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs detector; give the detector.safetensors of kts audit.")
            return
        if self.on_memorized is None:
            raise ValueError("detector needs on_memorized; choose one of redraw, touchdown or flag.")
        if self.max_redraws is not None and self.on_memorized != "redraw":
            raise ValueError(f"max_redraws needs on_memorized redraw, which is {self.on_memorized}; leave it out.")
        if self.keep_top is not None:
            raise ValueError("detector and keep_top are both given; give one of them.")

    @property
    def redraws(self) -> int:
        """How often a sample may be drawn again."""
        return MAX_REDRAWS if self.max_redraws is None else self.max_redraws

    @property
    def survivors(self) -> int:
        """Candidates of each prompt that remain after screening."""
        if self.screen_keep is not None:
            return self.screen_keep
        return max(self.keep_top or 1, math.ceil(self.images_per_prompt / 2))

    @property
    def part(self) -> tuple[int, int]:
        """(I, N) of ``shard``; (0, 1) for the whole."""
        if self.shard is None:
            return 0, 1
        i, slash, n = self.shard.partition("/")
        if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
            raise ValueError(f"shard is {self.shard!r}; give 'I/N' with I from 0 to N - 1, such as 0/8.")
        return int(i), int(n)

    def to_yaml(self) -> str:
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """Plain values only, as trackers take them."""
        return {name: value if value is None else str(value) for name, value in dataclasses.asdict(self).items()}

    @property
    def identity(self) -> dict[str, Any]:
        """As `Settings.identity`, with the name that outputs have always recorded."""
        identity = super().identity
        return {"steps": identity.pop("num_inference_steps"), **identity}
