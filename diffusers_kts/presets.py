"""Shaping settings by purpose, each with the source of its numbers.

    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["quality"])

A preset names every shaping setting, so that one replaces another completely. None is promised to help on your model:
measure it there, or let ``kts tune`` find one, which `load_preset` reads.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

from .files import write_whole
from .shaping import SHAPING, Shaping

FORMAT, VERSION = "diffusers-kts/preset", 1


class Preset(dict[str, Any]):
    """Keyword arguments of the KTS schedulers, with their purpose and source.

    Args:
        purpose: what the settings are for.
        source: where the numbers come from.
        num_inference_steps: the number of steps they were tuned with.
        settings: shaping settings; those not named are off (``alpha_0 = beta_0 = 0``) or as in `Shaping`.

    Raises:
        ValueError: a setting is out of range.
        TypeError: a setting does not exist.
    """

    def __init__(self, purpose: str, source: str, num_inference_steps: int | None = None, **settings: Any) -> None:
        super().__init__(Shaping(**{"alpha_0": 0.0, "beta_0": 0.0} | settings).to_dict())
        self.purpose = purpose
        self.source = source
        self.num_inference_steps = num_inference_steps

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON; an existing file is replaced only once the new one is whole."""
        content = {"format": FORMAT, "version": VERSION, **vars(self), "settings": dict(self)}
        write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


RENAMED = {"anti_memorization": ("touchdown", "0.3.0")}  # new name, and the release that drops the old one


class Presets(dict[str, Preset]):
    """Presets by name; the error for a name that does not exist lists those that do. Names of earlier releases warn."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in RENAMED

    def __missing__(self, name: str) -> Preset:
        if name in RENAMED:
            new, release = RENAMED[name]
            warnings.warn(
                f"the preset {name!r} is called {new!r} now; the old name goes in release {release}.",
                FutureWarning,
                stacklevel=2,
            )
            return self[new]
        raise KeyError(f"{name!r} is not a preset; choose one of {', '.join(self)}.")


PAPER = "arXiv 2602.07928"

PRESETS = Presets(
    off=Preset("plain Euler, with the energy recorded", "identity: bit-equal to FlowMatchEulerDiscreteScheduler"),
    balanced=Preset(
        "the paper's compromise: less memorization, reported at no loss of quality",
        f"{PAPER}, CelebA 32x32, Euler 100: reported FID 16.68 -> 14.35, F_mem 37.34 -> 31.22 %",
        alpha_0=0.01,
        beta_0=0.01,
    ),
    quality=Preset(
        "fidelity of large class-conditional models",
        f"{PAPER}, ImageNet-256: reported FID 11.70 -> 11.59, CLIP score 24.11 -> 24.34",
        alpha_0=0.05,
    ),
    landing=Preset(
        "the paper's strongest reduction of memorization, which leaves residual noise",
        f"{PAPER}, CelebA 32x32, Euler 100: reported F_mem 37.34 -> 19.36 %, FID 16.68 -> 86.56",
        beta_0=0.02,
    ),
    touchdown=Preset(
        "one step to the data estimate at t = .7: fewer network calls, no residual noise, softer images",
        "this project, benchmarks/science/paper_tables.py, Fashion-MNIST, 100 steps: F_mem 39.8 -> 20.7 %, of which equal "
        "blur alone gives 39.8 -> 22.9 %; 99.9 % of the memorized samples keep their nearest training image",
        touchdown=0.7,
    ),
)


def load_preset(path: str | os.PathLike) -> Preset:
    """Read what ``kts tune`` (or `Preset.save`) wrote.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PRESETS["quality"].save(f"{folder}/preset.json")
        ...     load_preset(f"{folder}/preset.json")["alpha_0"]
        0.05

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a preset or is from a newer release, or a setting is missing, unknown or out of range.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; give the preset.json of kts tune.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        version, settings = content["version"], dict(content["settings"])
        about = {name: content[name] for name in ("purpose", "source", "num_inference_steps")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a preset ({type(error).__name__}: {error}); give the preset.json of kts tune."
        ) from error
    if version != VERSION:
        raise ValueError(f"{path} has format version {version!r}; this release reads {VERSION}: upgrade.")
    steps = about["num_inference_steps"]
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
        raise ValueError(f"{path} has num_inference_steps {steps!r:.60}; give a whole number from 1, or null.")
    missing, unknown = set(SHAPING) - settings.keys(), settings.keys() - set(SHAPING)
    for wrong, names in (("is missing", missing), ("has the unknown setting", unknown)):
        if names:
            raise ValueError(f"{path} {wrong} {min(names)}; a preset names {', '.join(SHAPING)}, and nothing else.")
    try:
        return Preset(**about, **settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has a setting that cannot be used: {error}") from error
