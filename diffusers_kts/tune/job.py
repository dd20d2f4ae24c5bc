"""``kts tune``: find the shaping settings that suit a model and a goal, and say honestly whether they beat plain sampling.

    result = tune(TuneSettings(objectives=("frechet", "f_mem"), reference=Path("held-out"), trials=60))
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **result.preset)

Every setting is drawn with the same noises and prompts (common random numbers), so that settings differ by what they do and
not by luck. What is searched: `tune.space`; how unpromising settings stop early: `tune.halving`; what is recommended:
`tune.recommend`. A study that was stopped resumes, and processes that are given the same settings share it.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .. import __version__
from ..features.choice import feature_space
from ..files import written_together
from ..images.training_images import load_images
from ..plotting import plot_front
from ..presets import PRESETS, Preset
from ..sampling.devices import usable_device
from ..sampling.find import find_images, find_model, fingerprint, num_classes
from ..sampling.prompts import in_turn, prompts_hash, read_prompts
from ..sampling.sampler import Drawn, Sampler
from ..shaping import Shaping
from .halving import batches, filled, halves, rungs
from .objectives import Samples, Yardsticks, find_objective, is_finite, source_digest
from .recommend import Comparison, candidate, compare, front, is_recommended, verdict
from .settings import LEAST_UNITS, PIECES, TuneSettings, objective_name
from .space import STEPS, Setting, Space
from .study import SharedStudy

PLAIN = "plain.safetensors"  # readings of plain sampling, which every process needs
FILES = ("tuning.json", "front.png", "preset.json")
BUSY_WAIT = 0.2  # seconds before another process's trials are looked at again


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
        self.prompts = read_prompts(settings, num_classes(folder))
        self.sampler = Sampler(folder, settings, usable_device(settings.device), Shaping(**PRESETS["off"]))
        self.sampler.check_prompts(self.prompts)
        self.sampler.pipe.record_turn = "settling" in settings.objectives
        steps = self.sampler.argument("num_inference_steps")
        if steps is None:
            raise ValueError(f"{self.sampler.name} has no default number of steps; give one with --num-inference-steps.")
        no_touchdown = {"touchdown": None} if "settling" in settings.objectives else {}
        self.space = Space(steps, {**settings.fixed, **no_touchdown}, settings.ranges)
        indices = range(min(2, self._size))  # tried now, so that a refusal comes before any work
        few = _samples(self.sampler.trial(indices, in_turn(self.prompts, indices)))
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
            raise ValueError(
                f"{self.sampler.name} draws videos, which {needs[0]} cannot judge; give a function as --objective."
            )
        channels, height, width = shape

        def images(given: Path | None, option: str) -> torch.Tensor:
            return load_images(find_images(folder, given, option, s.output), (channels, height, width))

        space = reference = training = None
        if "frechet" in needs:
            space = feature_space(s.features, self.sampler.pipe.device, (channels, height, width))
            reference = images(s.reference, "--reference")
            if space.note:
                notes.append(f"The Frechet distance is measured in {space.note}")
            if s.reference is None:
                notes.append(
                    "The Frechet distance is to the training images: a model that copies them looks better than it is. Give "
                    "held-out images with --reference."
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
        identity |= s.identity
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
        """The front, the candidate, and its fresh samples next to those of plain sampling."""
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
        self.sampler.shape(type(self.sampler.pipe.scheduler), Shaping(**setting.shaping))
        parts = [[reading] for reading in before] or [[] for _ in self.objectives]
        for batch in batches(start, stop, self.settings.num_samples, self.settings.batch_size):
            drawn = self.sampler.draw(batch, in_turn(self.prompts, batch), num_inference_steps=setting.num_inference_steps)
            if (drawn.trace.nonfinite >= 0).any():
                raise _Diverged(f"a sample diverged under {setting}; try --dtype float32.")
            for part, objective in zip(parts, self.objectives, strict=True):
                part.append(objective.read(_samples(drawn)))
        return [torch.cat(part) for part in parts]

    def _values(self, readings: Sequence[torch.Tensor]) -> list[float]:
        return [objective.value(reading) for objective, reading in zip(self.objectives, readings, strict=True)]


def _samples(drawn: Drawn) -> Samples:
    return Samples(drawn.images, drawn.trace)
