"""The settings of the jobs that draw samples: data classes whose fields carry their help and their limits. A YAML file, a
command line and the checks are made from them."""

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar

import yaml

from ..models import GUIDANCE, NAMES
from ..presets import PRESETS, load_preset
from ..shaping import SHAPING, Shaping

DEFAULT = Shaping()  # the defaults of the KTS schedulers
SHAPES = "linear, constant or exponential"
AnySettings = TypeVar("AnySettings", bound="Settings")
DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "sequential")
# groups of settings in a command's help
MODEL, PROMPTS, SAMPLING, KTS, MEASURES = "Model", "Prompts", "Sampling", "Shaping (KTS)", "Measures"
IMAGES, NETWORKS, SELECTION, OUTPUT, DISTRIBUTED = "Images", "Networks", "Selection", "Output", "Distributed runs"
DETECTOR = "Memorized samples"
RENAMED = {"steps": "num_inference_steps"}  # in settings files of earlier outputs


def setting(
    default: Any,
    help: str,
    group: str = OUTPUT,
    *,
    identity: bool = True,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    parse: Any = None,
    kind: Any = None,
    flag: str | None = None,
    hidden: bool = False,
) -> Any:
    """A field of a settings class.

    Args:
        default: its value if it is not given.
        help: what it means, as the command line shows it.
        group: heading in the command's help.
        identity: whether it decides what the samples are, so that a run with another value cannot resume in the same folder.
        least: lowest value allowed.
        most: highest value allowed.
        choices: values allowed.
        parse: reads the command line's text.
        kind: type of the option, where it is not that of the field.
        flag: name of the option, where it is not that of the field; "" for a positional argument.
        hidden: whether the help leaves it out, as maintainers alone need it.
    """
    metadata = {
        "help": help, "group": group, "identity": identity, "least": least, "most": most, "choices": tuple(choices),
        "parse": parse, "kind": kind, "flag": flag, "hidden": hidden,
    }  # fmt: skip
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def inherited(settings: type, name: str, default: Any, **changes: Any) -> Any:
    """The field ``name`` of another settings class, with another default and ``changes`` of what `setting` was given."""
    metadata = settings.__dataclass_fields__[name].metadata  # type: ignore[attr-defined]
    return dataclasses.field(default=default, kw_only=True, metadata={**metadata, **changes})


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
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{source} cannot be read ({' '.join(str(error).split())}); give a JSON or YAML mapping.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{source} holds a {type(value).__name__}; give a JSON or YAML mapping of names to values.")
    return value


def types_of(settings: type) -> Mapping[str, Any]:
    """The type of every field of a settings class."""
    return {name: hint for name, hint in typing.get_type_hints(settings).items() if typing.get_origin(hint) is not ClassVar}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked settings of a job.

    Raises:
        ValueError: a setting is out of range, or of the wrong type.
    """

    def __post_init__(self) -> None:
        types = types_of(type(self))
        for field in dataclasses.fields(self):
            name, value = field.name, _typed(field.name, getattr(self, field.name), types[field.name])
            object.__setattr__(self, name, value)
            least, most, choices = (field.metadata[limit] for limit in ("least", "most", "choices"))
            if value is not None and least is not None and value < least:
                raise ValueError(f"{name} is {value}; give at least {least}.")
            if value is not None and most is not None and value > most:
                raise ValueError(f"{name} is {value}; give at most {most}.")
            if choices and value is not None and value not in choices:
                *others, last = choices
                one = "one of " if len(others) > 1 else ""
                raise ValueError(f"{name} is {value!r:.60}; choose {one}{', '.join(others)} or {last}.")

    @classmethod
    def load(cls: type[AnySettings], config: str | Path | None = None, **given: Any) -> AnySettings:
        """Settings of a YAML file, those ``given`` above them.

        Raises:
            ValueError: the file cannot be read, or names a setting that does not exist.
        """
        values = read_mapping(str(config)) if config is not None else {}
        values = {str(name).replace("-", "_"): value for name, value in values.items()}
        values = {RENAMED.get(name, name): value for name, value in values.items()} | given
        known = types_of(cls)
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, [*known, *RENAMED], n=1)
                others = f"choose from {', '.join(known)}."
                hint = f"did you mean {RENAMED.get(close[0], close[0])!r}?" if close else others
                raise ValueError(f"{config or cls.__name__} has a setting {name!r:.60}, which does not exist; {hint}")
        try:
            for field in dataclasses.fields(cls):
                if field.metadata["parse"] is not None and isinstance(values.get(field.name), (str, list)):
                    values[field.name] = field.metadata["parse"](values[field.name])
            return cls(**values)
        except ValueError as error:
            if config is None or str(error).startswith(tuple(given)):
                raise
            raise ValueError(f"{config}: {error}") from error

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide what the samples are; a job adds prompts, weights and images as hashes."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["identity"]}


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Settings):
    """What to draw from, and how."""

    model: str = setting(
        NAMES[0], "Pipeline folder, Hub id, or an embedded model: " + ", ".join(NAMES) + ".", MODEL, identity=False
    )
    dtype: str = setting("float32", "Of the model.", MODEL, choices=DTYPES)
    offload: str = setting("none", "Move parts of the model to the CPU when idle.", MODEL, identity=False, choices=OFFLOADS)
    compile: bool = setting(False, "torch.compile the transformer.", MODEL)
    num_inference_steps: int | None = setting(None, "Sampler steps. Default: the pipeline's.", SAMPLING, least=1)
    guidance_scale: float | None = setting(
        None, "Guidance. Default: the pipeline's; " + ", ".join(f"{n} {g:g}" for n, g in GUIDANCE.items()) + ".", SAMPLING
    )
    negative_prompt: str | None = setting(None, "Negative prompt of every sample.", SAMPLING)
    height: int | None = setting(None, "In pixels. Default: the pipeline's.", SAMPLING, least=1)
    width: int | None = setting(None, "In pixels. Default: the pipeline's.", SAMPLING, least=1)
    num_frames: int | None = setting(None, "Frames of a video. Default: the pipeline's.", SAMPLING, least=1)
    pipeline_args: dict[str, Any] = setting(
        {}, "Further pipeline arguments: JSON or YAML, text or file.", SAMPLING, parse=read_mapping, kind=str
    )
    seed: int = setting(0, "The noise of sample i depends on (seed, i) alone.", SAMPLING, least=0)
    batch_size: int = setting(
        8, "Samples per pipeline call. Fixed for an output: results depend on it in the last bits.", SAMPLING, least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "pipeline_args", json.loads(json.dumps(self.pipeline_args, allow_nan=False)))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"pipeline_args is {self.pipeline_args!r} ({error}); give what JSON knows.") from error


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """The prompts or classes to draw."""

    prompt: str | None = setting(None, "A single prompt.", PROMPTS, identity=False)
    prompts: str | None = setting(None, "Prompts: .txt (one per line), .jsonl, .csv or .parquet.", PROMPTS, identity=False)
    dataset: str | None = setting(
        None, "Prompts from a data set of the Hub, or a folder `datasets` reads.", PROMPTS, identity=False
    )
    split: str = setting("train", "Split of --dataset.", PROMPTS, identity=False)
    prompt_column: str = setting("prompt", "Column of the prompt, or of the class.", PROMPTS, identity=False)
    class_labels: str | None = setting(
        None, "Classes of a class-conditional model, 'Sneaker,Bag' or '0,3'. Default: all, in order.", PROMPTS, identity=False
    )
    num_prompts: int | None = setting(
        None, "Use only the first prompts; class labels repeat in turn.", PROMPTS, identity=False, least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = [name for name in ("prompt", "prompts", "dataset", "class_labels") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"{sources[0]} and {sources[1]} are both given; give one of them.")


@dataclass(frozen=True, kw_only=True)
class ShapingSettings(Settings):
    """Shaping: a preset, single settings, or both. A preset sets all seven, single settings override it; without a preset the
    others keep the defaults of the KTS schedulers."""

    preset: str | None = setting(None, f"{', '.join(PRESETS)}, or a preset.json of kts tune. Default: no shaping.", KTS)
    alpha_0: float | None = setting(None, f"Strength of the launch. Default: the preset's, else {DEFAULT.alpha_0}.", KTS)
    beta_0: float | None = setting(None, f"Strength of the landing. Default: the preset's, else {DEFAULT.beta_0}.", KTS)
    tau_split: float | None = setting(
        None, f"Flow time where the landing begins, 0 to 1. Default: the preset's, else {DEFAULT.tau_split}.", KTS
    )
    k: float | None = setting(None, f"Rate of the exponential shapes. Default: the preset's, else {DEFAULT.k:g}.", KTS)
    early_schedule: str | None = setting(
        None, f"Shape of the launch: {SHAPES}. Default: the preset's, else {DEFAULT.early_schedule}.", KTS
    )
    late_schedule: str | None = setting(
        None, f"Shape of the landing: {SHAPES}. Default: the preset's, else {DEFAULT.late_schedule}.", KTS
    )
    touchdown: float | None = setting(
        None, "Flow time, 0 to 1, of one last step to the data estimate. Default: the preset's, else none.", KTS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset is not None and self.preset.endswith(".json"):
            preset = load_preset(self.preset)
            self._take(preset | {"num_inference_steps": preset.num_inference_steps})
        elif self.preset is not None and self.preset not in PRESETS:
            raise ValueError(
                f"preset is {self.preset!r}; choose one of {', '.join(PRESETS)}, or give the preset.json of kts tune."
            )
        if self.preset is None and any(getattr(self, name) is not None for name in SHAPING):
            self._take(DEFAULT.to_dict())
        self.shaping  # noqa: B018 (raises)

    def _take(self, settings: Mapping[str, Any]) -> None:
        """Settings in place of a preset's name, to be kept with the output; those given come first."""
        object.__setattr__(self, "preset", None)
        for name, value in settings.items():
            if getattr(self, name, 0) is None:
                object.__setattr__(self, name, value)

    @property
    def shaping(self) -> Shaping | None:
        """The shaping; None where nothing is given, and a model keeps its own scheduler."""
        given = {name: getattr(self, name) for name in SHAPING if getattr(self, name) is not None}
        return Shaping(**(PRESETS[self.preset or "off"] | given)) if given or self.preset is not None else None


def _typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` if it is of the field's type; YAML's whole numbers and '1e-3' become floats."""
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, Path) and str in kinds:
        value = str(value)
    elif isinstance(value, str) and Path in kinds:
        value = Path(value)
    wanted = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
    if wanted and isinstance(value, float) and not math.isfinite(value):
        wanted = False
    if not wanted:
        names = " or ".join("nothing" if kind is NoneType else WORDS[kind] for kind in kinds)
        raise ValueError(f"{name} is {value!r:.60}; give {names}.")
    return value


WORDS: dict[Any, str] = {
    str: "text", int: "a whole number", float: "a finite number", bool: "true or false", dict: "a mapping", Path: "a path",
    Mapping: "a mapping", Sequence: "a list",
}  # fmt: skip
