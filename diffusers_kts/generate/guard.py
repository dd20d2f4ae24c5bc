"""What is done about samples that a detector takes for memorized: they touch down, are drawn again, or are only named."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from ..kpe.trace import KPETrace
from ..memorization.detector import MemorizationDetector
from ..sampling.prompts import Prompt
from ..sampling.sampler import Drawn, Sampler, after_each_step
from ..schedulers.scheduling_kts_detector_flow_match import KTSDetectorFlowMatchScheduler
from ..seeding import sample_generators, sample_seed
from .settings import GenerateSettings


class _Enough(Exception):
    """The first step of a run has been made."""


class Guard:
    """Draws batches with a detector in the scheduler.

    A redraw takes the next noise of the sample's number, so that it depends on (seed, index) alone, as the first. One that is
    flagged after the last redraw is kept, and remains flagged.

    Raises:
        ValueError: the detector was fitted with another shaping, or the settings do not fit it.
    """

    def __init__(self, model: Sampler, settings: GenerateSettings, detector: MemorizationDetector) -> None:
        self.model, self.settings = model, settings
        chosen: dict[str, Any] = {"on_memorized": "touchdown"}
        if settings.on_memorized != "touchdown":
            chosen = {"on_memorized": "flag", "detect_at": 1.0}
        given = {"detect_at": settings.detect_at, "detector_threshold": settings.detector_threshold}
        chosen |= {name: value for name, value in given.items() if value is not None}
        shaping = settings.shaping.to_dict() if settings.shaping else {}
        config = model.own_scheduler.config
        self.scheduler = KTSDetectorFlowMatchScheduler.from_config(config, **shaping, **chosen, detector=detector)

    def trial(self, indices: Sequence[int], prompts: Sequence[Prompt]) -> Drawn:
        """As `Sampler.trial`; then the first step of a whole run, in which the scheduler compares run and detector.

        Raises:
            ValueError: the model does not run, or the detector was fitted to other runs.
        """
        drawn = self.model.trial(indices, prompts)
        if "callback_on_step_end" not in self.model.parameters:
            raise ValueError(f"{self.model.name} takes no callback_on_step_end, which a detector needs; leave --detector out.")

        def stop(tensors: dict[str, Any]) -> None:
            raise _Enough

        self.model.pipe.scheduler = self.scheduler
        with suppress(_Enough):
            self.model.draw(indices[:1], prompts[:1], decode=False, callback_on_step_end=after_each_step(stop))
        return drawn

    def __call__(self, indices: Sequence[int], prompts: Sequence[Prompt]) -> tuple[Drawn, list[int]]:
        """The samples of the given numbers, and how often each was drawn again."""
        s = self.settings
        self.model.pipe.scheduler = self.scheduler
        drawn, redraws = self.model.draw(indices, prompts), [0] * len(indices)
        for number in range(1, 1 + (s.redraws if s.on_memorized == "redraw" else 0)):
            again = drawn.trace.flagged.nonzero().flatten().tolist()
            if not again:
                break
            some = [indices[i] for i in again]
            generators = sample_generators(s.seed, some, number)
            drawn = _replaced(drawn, again, self.model.draw(some, [prompts[i] for i in again], generators=generators))
            for i in again:
                redraws[i] = number
        return drawn, redraws

    def columns(self, indices: Sequence[int], redraws: Sequence[int]) -> list[dict[str, Any]]:
        """What the row of each sample has to say about redraws."""
        if self.settings.on_memorized != "redraw":
            return [{} for _ in indices]
        seed = self.settings.seed
        return [{"redraws": n, "generator_seed": sample_seed(seed, i, n)} for i, n in zip(indices, redraws, strict=True)]


def _replaced(drawn: Drawn, rows: list[int], other: Drawn) -> Drawn:
    """``drawn`` with its ``rows`` taken from ``other``."""
    pixels, order = drawn.pixels.copy(), torch.arange(len(drawn.pixels))
    pixels[rows], order[rows] = other.pixels, len(order) + torch.arange(len(rows))
    return Drawn(pixels, KPETrace.cat([drawn.trace, other.trace]).take(order))
