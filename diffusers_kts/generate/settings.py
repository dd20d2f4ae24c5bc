"""What a batch job is told: one data class, from which come the YAML file, the command line and the identity of a run."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..presets import PRESETS, Preset, load_preset

SHAPING = tuple(PRESETS["off"])
FORMATS = ("imagefolder", "webdataset", "parquet")
DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "sequential")
ENERGIES = tuple(f"{kind}_energy_{part}" for kind in ("path", "model") for part in ("total", "early", "late"))
STATISTICS = (*ENERGIES, "per_dim")


def setting(default: Any, help: str, identity: bool = True, parse: Any = None) -> Any:
    """A field: ``identity`` says whether it decides what a sample looks like or where it lies, so that a run with another
    value must not go on in the same folder; ``parse`` reads the command line's text."""
    metadata = {"help": help, "identity": identity, "parse": parse}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read_mapping(text: str) -> dict[str, Any]:
    """A mapping from a JSON or YAML file, or from the JSON or YAML itself.

    Raises:
        ValueError: unreadable, or not a mapping.
    """
    path, source = Path(text), "the text given"
    try:
        if path.suffix in (".yaml", ".yml", ".json"):
            source = str(path)
            text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{source} cannot be read ({' '.join(str(error).split())}); give a JSON or YAML mapping.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{source} holds a {type(value).__name__}; give a JSON or YAML mapping of names to values.")
    return value


@dataclass(frozen=True)
class GenerateSettings:
    """Everything `run_generate` is told; each field's meaning is its ``help``, which is also the command line's.

    Raises:
        ValueError: a setting is out of range, of the wrong type, or contradicts another.
    """

    output: str = setting("", "Folder, or any fsspec URL (s3://, gs://, hf://, memory://).", identity=False)
    model: str = setting("generalizing", "Pipeline folder, Hub id, or an embedded model: generalizing, memorizing.", False)
    prompts: str | None = setting(None, "Prompts: .txt (one a line), .jsonl, .csv or .parquet.", identity=False)
    dataset: str | None = setting(None, "Prompts from a data set of the Hub, or a folder `datasets` reads.", identity=False)
    split: str = setting("train", "Split of --dataset.", identity=False)
    prompt_column: str = setting("prompt", "Column of the prompt (or class label); the others go into the metadata.", False)
    class_labels: str | None = setting(
        None, "Classes of a class-conditional model, 'Sneaker,Bag' or '0,3'; default: all, in order.", identity=False
    )
    num_prompts: int | None = setting(None, "Take the first so many prompts; class labels go round.", identity=False)
    images_per_prompt: int = setting(1, "Samples (or, with --keep-top, candidates) of each prompt.")
    negative_prompt: str | None = setting(None, "Negative prompt of every sample.")
    preset: str | None = setting(
        None,
        f"KTS preset: {', '.join(PRESETS)}, or the preset.json of kts tune; without one the model's own scheduler is kept.",
    )
    alpha_0: float | None = setting(None, "KTS: strength of the launch.")
    beta_0: float | None = setting(None, "KTS: strength of the landing.")
    tau_split: float | None = setting(None, "KTS: flow time where the landing begins.")
    k: float | None = setting(None, "KTS: rate of the exponential shapes.")
    early_schedule: str | None = setting(None, "KTS: linear, constant or exponential.")
    late_schedule: str | None = setting(None, "KTS: linear, constant or exponential.")
    touchdown: float | None = setting(None, "KTS: flow time of the one last step to the data estimate.")
    steps: int | None = setting(None, "Sampler steps; default: the pipeline's.")
    guidance_scale: float | None = setting(None, "Guidance; default: the pipeline's.")
    height: int | None = setting(None, "Pixels; default: the pipeline's.")
    width: int | None = setting(None, "Pixels; default: the pipeline's.")
    num_frames: int | None = setting(None, "Frames of a video; default: the pipeline's.")
    fps: int = setting(16, "Frames a second of the MP4.")
    pipeline_args: dict[str, Any] = setting({}, "Further pipeline arguments: JSON or YAML, text or file.", parse=read_mapping)
    dtype: str = setting("float32", f"Of the model: {', '.join(DTYPES)}.")
    seed: int = setting(0, "The noise of sample i depends on (seed, i) alone.")
    batch_size: int = setting(8, "Samples per pipeline call. Fixed for an output: results depend on it in the last bits.")
    offload: str = setting("none", f"Move parts of the model to the CPU when idle: {', '.join(OFFLOADS)}.", identity=False)
    compile: bool = setting(False, "torch.compile the transformer.")
    format: str = setting("imagefolder", f"Of the output: {', '.join(FORMATS)}.")
    shard_size: int = setting(256, "Samples per file of webdataset and parquet, which is also what a crash can cost.")
    video: str = setting("mp4", "How to write videos: mp4, or frames (PNG).")
    traces: bool = setting(False, "Also write every step's power, eta and t: traces/*.parquet.")
    keep_top: int | None = setting(None, "Keep so many of each prompt's candidates, ranked by --by.")
    by: str = setting("path_energy_total", f"What candidates are ranked by: {', '.join(STATISTICS)}.")
    lowest: bool = setting(False, "Rank the lowest energy first.")
    screen_steps: int | None = setting(None, "After so many steps, drop the candidates that rank last by the energy so far.")
    screen_keep: int | None = setting(None, "Candidates of each prompt that go on after screening; default: half.")
    writers: int = setting(4, "Threads that encode and write.", identity=False)
    shard: str | None = setting(None, "Do part I of N only, 'I/N' from 0 (SLURM arrays on object stores).", identity=False)
    recheck: bool = setting(False, "When resuming, compare the content of every file, not only its size.", identity=False)
    log_with: str | None = setting(None, "A tracker of accelerate: tensorboard, wandb, ...", identity=False)
    push_to_hub: str | None = setting(None, "Upload the finished data set to this Hub repository, owner/name.", identity=False)
    public: bool = setting(False, "Make a new Hub repository public.", identity=False)
    dry_run: bool = setting(False, "Check model and prompts, print the plan, write nothing.", identity=False)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name), HINTS[field.name]))
        if not self.output and not self.dry_run:
            raise ValueError("there is no output; give a folder or URL with --output.")
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give at least 1.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give 0 or a positive whole number.")
        choices = {"format": FORMATS, "dtype": DTYPES, "offload": OFFLOADS, "video": ("mp4", "frames"), "by": STATISTICS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        if self.preset is not None and self.preset.endswith(".json"):
            self._take(load_preset(self.preset))
        elif self.preset is not None and self.preset not in PRESETS:
            raise ValueError(
                f"preset is {self.preset!r}; choose one of {', '.join(PRESETS)}, or give the preset.json of kts tune."
            )
        sources = [name for name in ("prompts", "dataset", "class_labels") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"{sources[0]} and {sources[1]} are both given; give one of them.")
        if self.video == "frames" and self.format != "imagefolder":
            raise ValueError(f"video frames cannot go into {self.format}; give --format imagefolder, or --video mp4.")
        try:
            object.__setattr__(self, "pipeline_args", json.loads(json.dumps(self.pipeline_args, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"pipeline_args is {self.pipeline_args!r} ({error}); give what JSON knows.") from error
        if self.shaping is not None:
            from ..schedulers.scheduling_kts_flow_match import (
                KTSFlowMatchScheduler,  # not for every command that only lists options
            )

            KTSFlowMatchScheduler.from_config({}, **self.shaping)
        self._check_selection()
        self.part  # noqa: B018 (raises)

    def _take(self, preset: Preset) -> None:
        """The settings of a file in the place of its name, to be kept with the output; what is given goes before."""
        object.__setattr__(self, "preset", None)
        for name, value in (preset | {"steps": preset.num_inference_steps}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

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

    @property
    def shaping(self) -> dict[str, Any] | None:
        """Settings of `KTSFlowMatchScheduler`, or None where the model keeps its own scheduler."""
        given = {name: getattr(self, name) for name in SHAPING if getattr(self, name) is not None}
        return None if self.preset is None and not given else PRESETS[self.preset or "off"] | given

    @property
    def survivors(self) -> int:
        """Candidates of each prompt that go on after screening."""
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

    @classmethod
    def load(cls, config: str | Path | None = None, **given: Any) -> "GenerateSettings":
        """Settings of a YAML file, those ``given`` above them.

        Raises:
            ValueError: the file cannot be read, or names a setting that does not exist.
        """
        values = read_mapping(str(config)) if config is not None else {}
        values = {str(name).replace("-", "_"): value for name, value in values.items()}
        for name in values:
            if name not in HINTS:
                close = difflib.get_close_matches(name, HINTS, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "see kts generate --help."
                raise ValueError(f"{config} has a setting {name!r}, which does not exist; {hint}")
        values |= given
        for field in dataclasses.fields(cls):
            if field.metadata["parse"] is not None and isinstance(values.get(field.name), str):
                values[field.name] = field.metadata["parse"](values[field.name])
        return cls(**values)

    def to_yaml(self) -> str:
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """Plain values only, as trackers take them."""
        return {name: value if value is None else str(value) for name, value in dataclasses.asdict(self).items()}

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide what the samples are; prompts and weights are added by the job, as hashes."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["identity"]}


HINTS: Mapping[str, Any] = typing.get_type_hints(GenerateSettings)
AT_LEAST_ONE = (
    "num_prompts", "images_per_prompt", "steps", "height", "width", "num_frames", "fps", "batch_size", "shard_size",
    "keep_top", "screen_steps", "screen_keep", "writers",
)  # fmt: skip


def _typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` if it is of the field's type; YAML's whole numbers and '1e-3' become floats."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, Path) and str in kinds:
        value = str(value)
    wanted = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
    if wanted and isinstance(value, float) and not math.isfinite(value):
        wanted = False
    if not wanted:
        names = " or ".join("nothing" if kind is types.NoneType else NAMES[kind] for kind in kinds)
        raise ValueError(f"{name} is {value!r}; give {names}.")
    return value


NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", dict: "a mapping"}
