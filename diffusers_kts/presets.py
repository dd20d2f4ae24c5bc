"""Shaping settings by purpose, each with the source of its numbers.

    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["quality"])

A preset names every shaping setting, so that one replaces another completely. None is promised to help on your model:
measure it there, or let ``kts tune`` find one, which `load_preset` reads.
"""

import json
import os
from pathlib import Path
from typing import Any

FORMAT, VERSION = "diffusers-kts/preset", 1


class Preset(dict[str, Any]):
    """Keyword arguments of `KTSFlowMatchScheduler`, with what they are for, where they come from, and the number of steps they
    were tuned with."""

    def __init__(self, purpose: str, source: str, num_inference_steps: int | None = None, **changes: Any) -> None:
        base = {"alpha_0": 0.0, "beta_0": 0.0, "tau_split": 0.6, "k": 3.0, "touchdown": None}
        super().__init__(base | {"early_schedule": "linear", "late_schedule": "exponential"} | changes)
        self.purpose = purpose
        self.source = source
        self.num_inference_steps = num_inference_steps

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON; an existing file is replaced only once the new one is whole."""
        content = {"format": FORMAT, "version": VERSION, **vars(self), "settings": dict(self)}
        partial = Path(path).with_name(f".{Path(path).name}.partial")
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)


class Presets(dict[str, Preset]):
    """By name; a name that does not exist is told with those that do."""

    def __missing__(self, name: str) -> Preset:
        raise KeyError(f"{name!r} is no preset; choose one of {', '.join(self)}.")


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
    anti_memorization=Preset(
        "less memorization without residual noise, with fewer network calls",
        "ours, benchmarks/science/frontier.py, Fashion-MNIST, 100 steps, models that memorized 40 and 77 %: F_mem "
        "39.6 -> 20.2 and 76.9 -> 53.6 %, Frechet distance 19.51 -> 22.55 and 16.90 -> 17.93, both lower than with beta_0 = "
        "0.02",
        touchdown=0.7,
    ),
)


def load_preset(path: str | os.PathLike) -> Preset:
    """Read what ``kts tune`` (or `Preset.save`) wrote.

        preset = load_preset("kts-tune/preset.json")
        pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **preset)

    Raises:
        FileNotFoundError: no such file. ValueError: it is no preset, of another release, or a setting is missing, unknown or
            out of range, and which.
    """
    from .schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler  # not for those who only list the presets

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; give the preset.json of kts tune.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        version, settings = content["version"], dict(content["settings"])
        about = {name: content[name] for name in ("purpose", "source", "num_inference_steps")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no preset ({type(error).__name__}: {error}); give the preset.json of kts tune."
        ) from error
    if version != VERSION:
        raise ValueError(f"{path} has format version {version!r}; this release reads {VERSION}: upgrade.")
    named = PRESETS["off"].keys()
    for wrong, names in (("lacks", named - settings.keys()), ("has the unknown setting", settings.keys() - named)):
        if names:
            raise ValueError(f"{path} {wrong} {min(names)}; a preset names {', '.join(named)}, and nothing else.")
    try:
        KTSFlowMatchScheduler.from_config({}, **settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has a setting that cannot be used: {error}") from error
    return Preset(**about, **settings)
