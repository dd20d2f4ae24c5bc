"""``kts tune``: find the shaping settings that suit a model and a goal, and say honestly whether they beat plain sampling.

    result = tune(TuneSettings(objectives=("frechet", "f_mem"), reference_images=Path("held-out"), trials=60))
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **result.preset)

Every setting is drawn with the same noises and prompts (common random numbers), so that settings differ by what they do and
not by luck. What is searched: `tuning.space`; how unpromising settings stop early: `tuning.halving`; what is recommended:
`tuning.recommend`. A study that was stopped goes on where it was, and processes that are given the same settings share it.
"""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .. import __version__
from ..features.feature_space import feature_space
from ..files import written_together
from ..generate.model import Drawn, Model, find_model, fingerprint, num_classes
from ..generate.settings import GenerateSettings
from ..images.training_images import load_images
from ..plotting import plot_front
from ..presets import Preset
from ..sampling.prompts import Prompt, prompts_hash, read_prompts
from .halving import PIECES, batches, filled, halves, rungs
from .objectives import (
    MAXIMIZE,
    MINIMIZE,
    Samples,
    Score,
    Yardsticks,
    find_objective,
    is_finite,
    objective_name,
    source_digest,
)
from .recommend import Comparison, candidate, compare, front, is_recommended, verdict
from .space import STEPS, Setting, Space
from .study import SharedStudy

PLAIN = "plain.safetensors"  # readings of plain sampling, which every process needs
FILES = ("tuning.json", "front.png", "preset.json")
LEAST_UNITS = 20  # an interval from fewer numbers would be too narrow
SAMPLING = ("seed", "batch_size", "guidance_scale", "height", "width", "num_frames", "negative_prompt", "dtype")
BUSY_WAIT = 0.2  # seconds before another process's trials are looked at again


@dataclass(frozen=True)
class TuneSettings:
    """What `tune` does.

    Args:
        model (`str`): "memorizing", "generalizing", a pipeline folder, or a Hub id.
        output (`Path`): folder of the study and its results.
        objectives (`Sequence`): one to three, the most important first: names of `tuning.objectives`, "module:function",
            "file.py:function", or functions ``score(images, trace)``.
        directions (`Mapping[str, str]`): "minimize" or "maximize", by the name of an objective, in place of the usual one.
        fixed, ranges (`Mapping`): see `tuning.space.Space`.
        trials (`int`): settings to try, by all processes together; more may be asked of a study later.
        num_samples (`int`): of each setting that goes all the way; a multiple of 16.
        fresh_samples (`int`): of the candidate and of plain sampling, in the end.
        tolerance (`float`): share of plain's first objective that the recommended setting may lose.
        seed (`int`): with the number of the sample, all that its noise depends on; also of the proposals.
        steps (`int`, *optional*): sampler steps; the pipeline's own by default.
        batch_size (`int`): samples drawn at a time, at most ``num_samples / 16``.
        prompts (`str`, *optional*): file of prompts, which go round in order; class labels need none.
        guidance_scale, height, width, num_frames, negative_prompt, pipeline_args, dtype: as in `GenerateSettings`.
        features (`str`): the space of the Frechet distance, see `features.feature_space`.
        reference_images, training_images (`Path`, *optional*): file or folder that `training_images.load_images` reads, for
            "frechet" and "f_mem". By default the ``training_images.npz`` beside the model serves as both.

    Raises:
        ValueError: a setting is out of range.
    """

    model: str = "memorizing"
    output: Path = Path("kts-tune")
    objectives: Sequence[str | Score] = ("frechet", "f_mem")
    directions: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    trials: int = 40
    num_samples: int = 256
    fresh_samples: int = 512
    tolerance: float = 0.0
    seed: int = 0
    steps: int | None = None
    batch_size: int = 32
    prompts: str | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    negative_prompt: str | None = None
    pipeline_args: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    features: str = "auto"
    reference_images: Path | None = None
    training_images: Path | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 2 * PIECES or self.num_samples % PIECES:
            raise ValueError(f"num_samples is {self.num_samples}; give a multiple of {PIECES}, at least {2 * PIECES}.")
        for name, least in (("trials", 1), ("fresh_samples", LEAST_UNITS), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}.")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance is {self.tolerance}; give a share such as 0.02, or 0.")
        names = [objective_name(choice) for choice in self.objectives]
        if not 1 <= len(names) <= 3 or len(set(names)) < len(names):
            raise ValueError(f"objectives are {', '.join(names) or 'none'}; give one to three different ones.")
        for name, direction in self.directions.items():
            if name not in names:
                raise ValueError(f"a direction is given for {name!r}, which is no objective; these are {', '.join(names)}.")
            if direction not in (MINIMIZE, MAXIMIZE):
                raise ValueError(f"the direction of {name} is {direction!r}; choose {MINIMIZE} or {MAXIMIZE}.")
        if "settling" in names and ({"touchdown"} & {*self.ranges} or self.fixed.get("touchdown") is not None):
            raise ValueError("a path that touches down has no settling; leave the touchdown out, or take f_mem as objective.")
        self.sampling  # noqa: B018 (raises)

    @cached_property
    def sampling(self) -> GenerateSettings:
        """What the pipeline is told, as for ``kts generate``."""
        given = {name: getattr(self, name) for name in ("model", "prompts", "steps", *SAMPLING)}
        return GenerateSettings(dry_run=True, preset="off", pipeline_args=dict(self.pipeline_args), **given)


@dataclass
class TuneResult:
    """What a study found.

    Attributes:
        recommended (`bool`): whether a setting beats plain sampling significantly.
        preset (`Preset`): the recommended setting, else plain sampling.
        report (`dict`): all figures, as in ``tuning.json``.
        files (`list[Path]`): what was written.
    """

    recommended: bool
    preset: Preset
    report: dict[str, Any]
    files: list[Path]


def tune(settings: TuneSettings, show_progress: bool = True) -> TuneResult:
    """Try settings until ``settings.trials`` have been tried, draw the candidate and plain sampling on fresh samples, and
    write ``tuning.json``, ``front.png`` and ``preset.json`` into ``settings.output``.

    May be called by several processes of one machine at once; all end with the same result.

    Raises:
        ValueError: unsuitable model, images, objective or space; or the folder holds a study with other settings, and what
            differs. OSError: the folder holds other files, or cannot be written to.
    """
    with warnings.catch_warnings():  # a setting with such samples is stopped
        warnings.filterwarnings("ignore", "the velocity was not finite", RuntimeWarning)
        job = _Job(settings)
        try:
            return job.run(show_progress)
        finally:
            job.study.close()


class _Diverged(ValueError):
    """A sample is not finite."""


class _Job:
    """One process's view of a study."""

    def __init__(self, settings: TuneSettings) -> None:
        self.settings = settings
        folder = find_model(settings.model)
        self.prompts = read_prompts(settings.sampling, num_classes(folder))
        self.model = Model(folder, settings.sampling, Accelerator(cpu=not torch.accelerator.is_available()).device)
        self.model.check_prompts(self.prompts)
        self.model.pipe.record_turn = "settling" in settings.objectives
        steps = self.model.argument("num_inference_steps")
        if steps is None:
            raise ValueError(f"{self.model.name} has no number of steps of its own; give one with --steps.")
        no_touchdown = {"touchdown": None} if "settling" in settings.objectives else {}
        self.space = Space(steps, {**settings.fixed, **no_touchdown}, settings.ranges)
        indices = range(min(2, self._size))  # tried now, so that a refusal comes before any work
        few = _samples(self.model.trial(indices, self._subjects(indices)))
        yardsticks, self.notes = self._yardsticks(folder, few.images.shape[1:])
        self.objectives = [
            find_objective(choice, settings.directions.get(objective_name(choice)), yardsticks)
            for choice in settings.objectives
        ]
        self._try_objectives(few)
        identity = self._identity(folder, yardsticks)
        self.study = SharedStudy(settings.output, identity, self.objectives, self.space, settings.seed)

    def _yardsticks(self, folder: Path, shape: tuple[int, ...]) -> tuple[Yardsticks, list[str]]:
        """The images that the objectives need, and remarks for the reader."""
        s, notes = self.settings, list[str]()
        needs = [name for name in ("frechet", "f_mem") if name in s.objectives]
        if not needs:
            return Yardsticks(), []
        if len(shape) != 3:
            raise ValueError(f"{self.model.name} draws videos, which {needs[0]} cannot judge; give a function of your own.")

        def images(given: Path | None, option: str) -> torch.Tensor:
            path = given or folder / "training_images.npz"
            if not path.exists():
                raise ValueError(f"there are no images at {path}; give a file or folder with {option}.")
            channels, height, width = shape
            return load_images(path, (channels, height, width))

        space = reference = training = None
        if "frechet" in needs:
            space = feature_space(s.features, self.model.pipe.device)
            reference = images(s.reference_images, "--reference-images")
            if space.note:
                notes.append(f"The Frechet distance is measured in {space.note}")
            if s.reference_images is None:
                notes.append(
                    "The Frechet distance is to the training images: a model that copies them looks better than it is. Give "
                    "held-out images with --reference-images."
                )
        if "f_mem" in needs:
            training = images(s.training_images, "--training-images")
        return Yardsticks(space, reference, training), notes

    def _try_objectives(self, few: Samples) -> None:
        for objective in self.objectives:
            count = self.settings.fresh_samples // self._size
            if len(objective.read(few)) < len(few.trace) and count < LEAST_UNITS:
                raise ValueError(
                    f"the objective {objective.name!r} gives one number for a batch, which makes {count} of the fresh "
                    "samples, too few for an interval; let it return one per sample, or give at least "
                    f"{LEAST_UNITS * self._size} fresh samples."
                )

    @property
    def _size(self) -> int:
        return min(self.settings.batch_size, self.settings.num_samples // PIECES)

    def _identity(self, folder: Path, yardsticks: Yardsticks) -> dict[str, Any]:
        """All that the values depend on, with contents in place of paths. The numbers of trials and of fresh samples, and the
        tolerance, may change from call to call."""
        s = self.settings
        identity: dict[str, Any] = {"model": fingerprint(folder), "prompts": prompts_hash(self.prompts)}
        identity |= {name: getattr(s, name) for name in ("num_samples", *SAMPLING)}
        identity["pipeline_args"] = s.sampling.pipeline_args
        identity["objectives"] = [[o.name, o.direction] for o in self.objectives]
        identity["score files"] = [source_digest(choice) for choice in s.objectives]
        identity |= {STEPS: self.space.num_inference_steps, "fixed": dict(self.space.fixed), "ranges": dict(s.ranges)}
        identity["features"] = yardsticks.space.name if yardsticks.space else None
        for name in ("reference", "training"):
            images = getattr(yardsticks, name)
            identity[f"{name} images"] = (
                None if images is None else hashlib.sha256(images.contiguous().numpy().data).hexdigest()
            )
        versions = {"diffusers_kts": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
        return json.loads(json.dumps(identity | versions))

    def run(self, show_progress: bool) -> TuneResult:
        with self.study.alone():
            self.plain = self._read_plain()
            self.plain_values = self._values(self.plain)
        if not is_finite(self.plain_values):
            names = ", ".join(f"{o.name} is {v}" for o, v in zip(self.objectives, self.plain_values, strict=True))
            raise ValueError(f"plain sampling has no finite value ({names}), so nothing can be compared with it.")
        with tqdm(total=self.settings.trials, unit="setting", disable=not show_progress) as bar:
            while True:
                bar.update(len(self.study.trials()) - bar.n)
                following = self.study.next(self.settings.trials)
                if following is not None:
                    bar.set_description(str(following[1]))
                    self._run_trial(*following)
                elif self.study.is_done:
                    break
                else:
                    time.sleep(BUSY_WAIT)
        with self.study.alone():
            return self._conclude()

    def _read_plain(self) -> list[torch.Tensor]:
        """What the objectives read of plain sampling, drawn by the first process that comes."""
        path = self.settings.output / PLAIN
        names = [f"{i:02d}" for i in range(len(self.objectives))]
        if not path.exists():
            readings = self._read(self.space.plain, 0, self.settings.num_samples, [])
            with written_together(self.settings.output, [PLAIN]) as partial:
                save_file(dict(zip(names, readings, strict=True)), partial / PLAIN)
        held = load_file(path)
        return [held[name] for name in names]

    def _run_trial(self, trial: Any, setting: Setting) -> None:
        if setting == self.space.plain:  # drawn already
            return self.study.finish(trial, None)
        readings: list[torch.Tensor] = []
        for rung, (start, stop) in enumerate(self._rungs()):
            try:
                readings = self._read(setting, start, stop, readings)
            except _Diverged:
                return self.study.finish(trial, None)
            values = self._values(list(map(filled, readings, self.plain)))
            if not is_finite(values):
                return self.study.finish(trial, None)
            if stop == self.settings.num_samples:
                return self.study.finish(trial, values)
            parts = halves(self.objectives, readings, self.plain)
            if self.study.stops(trial, rung, values, parts, self.plain_values):
                return self.study.finish(trial, None)

    def _conclude(self) -> TuneResult:
        """The front, the candidate, and its fresh samples beside those of plain sampling."""
        s, trials, signs = self.settings, self.study.trials(), [o.sign for o in self.objectives]
        whole = [t for t in trials if t.state.name == "COMPLETE"]
        values, plain = [list(t.values) for t in whole], self.plain_values
        tuned = [Setting(**t.user_attrs["setting"]) for t in whole]
        looks = self.study.get("looks", [])
        asked = {"settings_tried": len(trials), "fresh_samples": s.fresh_samples, "tolerance": s.tolerance}
        look = next((held for held in looks if asked.items() <= held.items()), None)
        if look is None:
            chosen = candidate(values, plain, signs, s.tolerance)
            first = s.num_samples + sum(look["fresh_samples"] for look in looks)  # of noises that no look has seen
            found = [] if chosen is None else self._compare(tuned[chosen], first)
            look = (
                asked
                | {"first_sample": first, "candidate": chosen, "comparisons": [asdict(c) for c in found]}
                | {"recommended": is_recommended(found)}
                | {"verdict": verdict(None if chosen is None else tuned[chosen], found, s.fresh_samples, len(looks))}
            )
            self.study.keep("looks", [*looks, look])
        return self._write(look, trials, tuned, values)

    def _write(
        self, look: dict[str, Any], trials: Sequence[Any], tuned: Sequence[Setting], values: Sequence[Sequence[float]]
    ) -> TuneResult:
        s, chosen, plain = self.settings, look["candidate"], self.plain_values
        best = front(values, [o.sign for o in self.objectives])
        preset = self._preset(tuned[chosen] if look["recommended"] else None, look["verdict"][0])
        ends = [0, *rungs(s.num_samples)]
        drawn = [ends[-1] if t.state.name == "COMPLETE" else ends[len(t.user_attrs.get("halves", []))] for t in trials]
        report = {
            "objectives": [{"name": o.name, "label": o.label, "direction": o.direction} for o in self.objectives],
            "notes": self.notes,
            "num_samples": s.num_samples,
            "samples_drawn": sum(drawn),
            "settings_drawn_whole": len(tuned),
            "plain": {"setting": vars(self.space.plain), "values": plain},
            "front": [{"setting": vars(tuned[i]), "words": str(tuned[i]), "values": values[i]} for i in best],
            "candidate": None if chosen is None else {"setting": vars(tuned[chosen]), "words": str(tuned[chosen])},
            "preset": dict(preset) | {STEPS: preset.num_inference_steps},
            "study": self.study.get("identity", {}),
        } | {name: value for name, value in look.items() if name != "candidate"}
        with written_together(s.output, FILES) as partial:
            (partial / "tuning.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
            plot_front(values, best, plain, [o.label for o in self.objectives], chosen).savefig(partial / "front.png", dpi=120)
            preset.save(partial / "preset.json")
        return TuneResult(look["recommended"], preset, report, [s.output / name for name in FILES])

    def _compare(self, setting: Setting, first: int) -> list[Comparison]:
        stop = first + self.settings.fresh_samples
        own, plain = (self._read(each, first, stop, []) for each in (setting, self.space.plain))
        return compare(self.objectives, own, plain, self.settings.tolerance, self.settings.seed)

    def _preset(self, setting: Setting | None, words: str) -> Preset:
        source = f"kts tune, {self.settings.model}, {self.space.num_inference_steps} steps. {words}"
        names = ", ".join(f"{o.direction} {o.label}" for o in self.objectives)
        if setting is None:
            return Preset(f"plain sampling, which nothing tried beats ({names})", source, self.space.num_inference_steps)
        return Preset(names, source, setting.num_inference_steps, **setting.shaping)

    def _rungs(self) -> list[tuple[int, int]]:
        ends = rungs(self.settings.num_samples)
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def _read(self, setting: Setting, start: int, stop: int, before: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the objectives read of samples ``start`` to ``stop``, after what they read ``before``."""
        scheduler = self.model.pipe.scheduler
        self.model.pipe.scheduler = type(scheduler).from_config(self.model.own_scheduler.config, **setting.shaping)
        parts = [[reading] for reading in before] or [[] for _ in self.objectives]
        for batch in batches(start, stop, self.settings.num_samples, self.settings.batch_size):
            drawn = self.model.draw(batch, self._subjects(batch), num_inference_steps=setting.num_inference_steps)
            if (drawn.trace.nonfinite >= 0).any():
                raise _Diverged(f"a sample diverged under {setting}; try a wider dtype.")
            for part, objective in zip(parts, self.objectives, strict=True):
                part.append(objective.read(_samples(drawn)))
        return [torch.cat(part) for part in parts]

    def _values(self, readings: Sequence[torch.Tensor]) -> list[float]:
        return [objective.value(reading) for objective, reading in zip(self.objectives, readings, strict=True)]

    def _subjects(self, indices: range) -> list[Prompt]:
        return [self.prompts[i % len(self.prompts)] for i in indices]


def _samples(drawn: Drawn) -> Samples:
    return Samples(torch.from_numpy(drawn.pixels).movedim(-1, -3), drawn.trace)
