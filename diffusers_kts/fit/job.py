"""``kts fit``: a sampler fitted to a model, which draws its pictures in a fraction of the network calls.

    result = fit_sampler(pipe, ["a photo of a cat", "a house by the sea"], num_inference_steps=[6, 8], guidance_scale=4.0)
    pipe.scheduler = result.scheduler
    pipe("a dog in the snow", num_inference_steps=8, guidance_scale=4.0)

Teachers, trajectories of many steps, are drawn first and kept. For each number of steps, `fit.study` finds a grid and weights,
and compares them with other samplers on trajectories that nothing was fitted to or chosen by.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .. import __version__
from ..errors import brief
from ..files import check_new, read_json, written_together
from ..sampling.devices import usable_device
from ..sampling.find import find_model, fingerprint, num_classes
from ..sampling.prompts import Prompt, prompts_hash, read_prompts
from ..sampling.sampler import Sampler
from ..schedulers.scheduling_kts_fitted_flow_match import KTSFittedFlowMatchScheduler
from .errors import FITTED, GRID, compared, recommended, verdict
from .report import Fitted, write_report
from .runs import Runs
from .settings import FitSettings
from .study import OTHERS, Study, calls_of
from .teacher import Teachers, solver

MANIFEST, TEACHERS, FITS, SCHEDULER = "fit.json", "teacher", "fits", "scheduler"
FILES = ("report.html", "report.json", SCHEDULER)
ORDER = (FITTED, *OTHERS, GRID)
EVERY = 4  # every fourth prompt is held out


@dataclass
class FitResult:
    """What a fit found; of a dry run only ``plan``.

    Attributes:
        scheduler (`KTSFittedFlowMatchScheduler`): with all fits, to be given to the pipeline.
        verdict (`list[str]`): a sentence for each number of steps.
        report (`dict`): all figures, as in ``report.json``.
        files (`list[Path]`): what was written.
        plan (`list[str]`): what it costs, in words.
    """

    scheduler: KTSFittedFlowMatchScheduler | None
    verdict: list[str]
    report: dict[str, Any]
    files: list[Path]
    plan: list[str]


def run_fit(settings: FitSettings, show_progress: bool = True) -> FitResult:
    """Fit a sampler for each of ``settings.num_inference_steps``, and write the folder ``scheduler``, ``report.html`` and
    ``report.json`` into ``settings.output``. What an earlier run of the same settings has left there is not done again.

    Raises:
        ValueError: unsuitable model, prompts or settings; or the folder holds a fit with other ones, and what differs.
        OSError: the folder holds other files, or cannot be written to.
    """
    if settings.output.exists() and not settings.output.is_dir():
        raise NotADirectoryError(f"{settings.output} is a file; give a folder with --output.")
    folder = find_model(settings.model)
    prompts = read_prompts(settings, num_classes(folder))
    job = _Job(settings, Sampler(folder, settings.sampling, usable_device(settings.device)), prompts)
    if settings.dry_run:
        return FitResult(None, [], {}, [], job.plan())
    job.begin({"model": fingerprint(folder)})
    return job.run(show_progress)


def fit_sampler(
    pipe: Any,
    prompts: Sequence[str | int],
    num_inference_steps: Sequence[int] | int = (8,),
    output: Path | str | None = None,
    show_progress: bool = True,
    **settings: Any,
) -> FitResult:
    """As `run_fit`, for a pipeline that is loaded already, which is left as it is.

    Args:
        pipe: any flow-matching pipeline of diffusers.
        prompts (`Sequence`): prompts, or classes of a `ClassConditionalFlowPipeline`.
        num_inference_steps (`int` or `Sequence[int]`): network calls of a sample to fit for.
        output (`Path`, *optional*): a new folder for scheduler and report; without it nothing is kept.
        show_progress (`bool`): whether to show a progress bar.
        settings: others of `FitSettings`, such as ``guidance_scale`` and ``num_trajectories``.

    Raises:
        ValueError: as `run_fit`. FileExistsError: the folder holds something.
    """
    counts = [num_inference_steps] if isinstance(num_inference_steps, int) else list(num_inference_steps)
    if not prompts:
        raise ValueError("there are no prompts; give at least one.")
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(nowhere if output is None else output)
        if output is not None:
            check_new(folder)
        given = FitSettings(num_inference_steps=counts, output=folder, model=type(pipe).__name__, **settings)
        job = _Job(given, Sampler(pipe, given.sampling, None), [Prompt(text) for text in prompts])
        job.begin({})
        result = job.run(show_progress)
        if output is None:
            result.files = []
        return result


class _Job:
    def __init__(self, settings: FitSettings, sampler: Sampler, prompts: list[Prompt]) -> None:
        self.settings, self.sampler = settings, sampler
        sampler.check_comparable()
        sampler.check_prompts(prompts)
        held_out = prompts[EVERY - 1 :: EVERY]
        self.other_prompts = bool(held_out)
        rest = [prompt for i, prompt in enumerate(prompts) if i % EVERY != EVERY - 1]
        self.all_prompts = prompts
        self.bar = tqdm(disable=True)
        self.runs = Runs(sampler, rest, held_out or prompts, settings.num_trajectories, lambda: self.bar.update())
        n, half = settings.num_trajectories, settings.num_held_out // 2
        self.fitted, self.choice, self.check = (
            self._batches(*ends) for ends in ((0, n), (n, n + half), (n + half, n + 2 * half))
        )
        self.teachers = Teachers(settings.output / TEACHERS, self.fitted, settings.teacher_steps)
        self.shape = self._trial()

    def _batches(self, start: int, stop: int) -> list[range]:
        size = self.settings.batch_size
        return [range(i, min(i + size, stop)) for i in range(start, stop, size)]

    def _trial(self) -> torch.Size:
        """A run of two steps, so that what cannot be fitted is known before anything is written; the shape of a state."""
        times = [0.0, 0.5, 1.0]
        try:
            end, _ = self.runs.run(self.fitted[0][:1], solver(self.sampler.own_scheduler, times), 2)
        except Exception as error:  # bad arguments, impossible sizes, no memory, no flow
            raise ValueError(f"{self.sampler.name} does not run with these settings: {brief(error)}") from error
        return end.shape[1:]

    # --- what it costs

    @property
    def _batches_in_all(self) -> list[range]:
        return [*self.fitted, *self.choice, *self.check]

    def calls(self) -> tuple[int, list[int]]:
        """Network calls, each of a batch, for the teachers and for every number of steps."""
        parts = len(self.fitted), len(self.choice), len(self.check)
        return self.settings.teacher_steps * sum(parts), [calls_of(n, *parts) for n in self.settings.num_inference_steps]

    def plan(self) -> list[str]:
        """Calls, time and memory in words; the time from two short runs."""
        seconds = []
        for steps in (2, 6):
            times = [i / steps for i in range(steps + 1)]
            began = time.perf_counter()
            self.runs.run(self.fitted[0], solver(self.sampler.own_scheduler, times), steps)
            seconds.append(time.perf_counter() - began)
        each = max(seconds[1] - seconds[0], 0) / 4
        (teachers, fits), s, floats = self.calls(), self.settings, 4 * self.shape.numel()
        trajectories = s.num_trajectories + s.num_held_out
        history = max(s.num_inference_steps) if s.velocities is None else s.velocities
        lines = [
            f"Teachers: {trajectories} trajectories of {s.teacher_steps} network calls, {teachers} calls of a batch of up to "
            f"{s.batch_size}, about {_time(teachers * each)}; {_size((s.teacher_steps + 1) * trajectories * floats)} on disk."
        ]
        lines += [
            f"{n} steps: {calls} calls, about {_time(calls * each)}."
            for n, calls in zip(s.num_inference_steps, fits, strict=True)
        ]
        lines.append(
            f"Together {teachers + sum(fits)} calls, about {_time((teachers + sum(fits)) * each)} at {each:.3g} s a call, "
            f"without encoding and decoding. Memory of the device: as for a batch of {s.batch_size}, and "
            f"{_size(floats * history)} for each of the {s.num_trajectories} trajectories that are fitted to at once."
        )
        return lines

    # --- the work

    def begin(self, source: dict[str, Any]) -> None:
        """Leave the folder with the manifest of this fit, and nothing of another.

        Raises:
            ValueError: another fit lies there. OSError: it holds other files, or cannot be written to.
        """
        output, path = self.settings.output, self.settings.output / MANIFEST
        versions = {"diffusers_kts": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
        about = source | self.settings.identity | {"prompts": prompts_hash(self.all_prompts)} | versions
        about = json.loads(json.dumps(about))
        held = sorted(entry.name for entry in output.iterdir()) if output.exists() else []
        if held and MANIFEST not in held:
            raise FileExistsError(f"{output} is not empty (it holds {held[0]}) and holds no fit; give another --output.")
        if held and self.settings.overwrite:
            for name in (TEACHERS, FITS):
                shutil.rmtree(output / name, ignore_errors=True)
        elif held:
            before = read_json(path, dict)
            for name in dict.fromkeys([*before, *about]):
                if before.get(name) != about.get(name):
                    raise ValueError(
                        f"{output} holds a fit whose {name} is {before.get(name)!r:.80}, not {about.get(name)!r:.80}; give "
                        "the same again, another --output, or --overwrite."
                    )
            return
        with written_together(output, [MANIFEST]) as partial:
            (partial / MANIFEST).write_text(json.dumps(about, indent=2) + "\n")

    def run(self, show_progress: bool) -> FitResult:
        s, (teachers, fits) = self.settings, self.calls()
        with tqdm(total=teachers + sum(fits), unit="call", disable=not show_progress) as self.bar:
            self.bar.set_description("teachers")
            for batch in self._batches_in_all:
                if self.teachers.is_there(batch):
                    self.bar.update(s.teacher_steps)
                else:
                    self.teachers.draw(self.runs, batch, decode=batch == self.check[0])
            found = []
            for steps, calls in zip(s.num_inference_steps, fits, strict=True):
                self.bar.set_description(f"{steps} steps")
                found.append(self._fitted(steps, calls))
        return self._conclude(found)

    def _fitted(self, steps: int, calls: int) -> "Fitted":
        """The fit for a number of steps, from the folder if it is there."""
        name = f"{steps:03d}-{self.settings.history}"
        folder = self.settings.output / FITS
        names = f"{name}.safetensors", f"{name}.json"
        if not (folder / names[1]).exists():
            study = Study(self.runs, self.teachers, self.choice, self.check, self.settings.velocities)
            about = study.fit(steps)
            errors, pixels, notes = study.compare(about["fit"])
            tensors = {f"pixels {n}": value for n, value in pixels.items()} | {f"errors {n}": e for n, e in errors.items()}
            with written_together(folder, names) as partial:
                save_file({n: value.contiguous() for n, value in tensors.items()}, partial / names[0])
                (partial / names[1]).write_text(json.dumps(about | {"notes": notes}) + "\n")
        else:
            self.bar.update(calls)
        about, tensors = read_json(folder / names[1], dict), load_file(folder / names[0])
        order = [n for n in ORDER if f"errors {n}" in tensors]
        pixels = {n: tensors[f"pixels {n}"] for n in ("teacher", *order)}
        return Fitted(steps, about, compared({n: tensors[f"errors {n}"] for n in order}), pixels)

    def _conclude(self, found: list["Fitted"]) -> FitResult:
        s = self.settings
        scheduler: KTSFittedFlowMatchScheduler = solver(self.sampler.own_scheduler, [0.0, 1.0], 1)
        scheduler.register_to_config(fits=[each.about["fit"] for each in found])
        words = [verdict(each.steps, each.errors) for each in found]
        alike = "Fewer than four prompts: the check is on other noises, not on other prompts."
        notes = [] if self.other_prompts else [alike]
        notes += sorted({note for each in found for note in each.about["notes"]})
        report = {
            "settings": read_json(s.output / MANIFEST, dict),
            "history": s.history,
            "verdict": words,
            "notes": notes,
            "acceleration": {"flow_times": self.teachers.times, "values": self.teachers.acceleration()},
            "fits": [
                {
                    "num_inference_steps": each.steps,
                    "recommended": recommended(each.errors),
                    "errors": {name: asdict(error) for name, error in each.errors.items()},
                    **each.about,
                }
                for each in found
            ],
        }
        with written_together(s.output, FILES[:2]) as partial:
            (partial / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
            write_report(partial / "report.html", s.model, report, found)
        scheduler.save_pretrained(s.output / SCHEDULER)
        return FitResult(scheduler, [*words, *notes], report, [s.output / name for name in FILES], [])


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
