"""KTSDetectorFlowMatchScheduler: Euler steps, in which the samples that a detector takes for memorized touch down."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from ..euler_step import euler_step
from ..flow_coordinates import exceeds_one
from ..gain import is_number
from ..memorization.detector import MemorizationDetector, path_settings, probability
from ..shaping import SHAPING
from .base import Setting, shaped_init
from .scheduling_kts_flow_match import KTSFlowMatchScheduler
from .shaping_plan import ShapingPlan

DETECTOR = {"detector": None, "detector_threshold": 0.5, "detect_at": 0.6, "on_memorized": "touchdown"}
ACTIONS = ("touchdown", "flag")
TINY = torch.finfo(torch.float32).tiny


class Decision(NamedTuple):
    """At which evaluation of a plan the detector judges, and the numbers it judges by, see `MemorizationDetector.linear`."""

    plan: ShapingPlan
    detector: MemorizationDetector
    at: int
    weights: torch.Tensor
    bias: float


class KTSDetectorFlowMatchScheduler(KTSFlowMatchScheduler):
    """`KTSFlowMatchScheduler` with a `MemorizationDetector`, which `kts audit` fits to a model: at one flow time it judges
    every sample by the speeds up to then, and those that it takes for memorized touch down. Order 1.

    They take one step to their data estimate ``x + (1 - t) v`` and then rest; the others go on. To the bit, the former are
    what a scheduler with ``touchdown`` at that evaluation draws, the latter what one without a detector draws. A sample is
    judged by its own record alone, whatever else is in the batch, and nothing waits for the device but one copy of the
    detector to it. `kpe` holds the probabilities (`KPETrace.memorization_probability`), who was `flagged`, and the gains
    used, (B, N); `gains` and `schedule_table` are those planned. The network is called at every step, also for samples at
    rest.

    The detector belongs to a model, its guidance, a schedule and a shaping. Another shaping, number of steps, spacing or size
    of the latents is refused; a scheduler does not see the model and its guidance, which `kts generate` compares, too.

        pipe.scheduler = KTSDetectorFlowMatchScheduler.from_config(
            pipe.scheduler.config, detector="kts-audit/detector.safetensors"
        )

    Not from the paper. In ``benchmarks/science/acting.py`` it memorizes more than a touchdown of all samples at equal Frechet
    distance, on the one model measured, and is no preset.

    Args:
        detector (a path, a `MemorizationDetector` or its `to_dict`, *optional*): the configuration keeps its numbers, so that
            a saved pipeline needs no other file. Without one, this is a `KTSFlowMatchScheduler`.
        detector_threshold (`float`, defaults to 0.5): probability, in (0, 1), from which a sample is flagged.
        detect_at (`float`, defaults to 0.6): flow time of the judgment, one of the detector's `ends`: it reads the record up
            to there, at the first evaluation that is not earlier; 1 judges by the whole record, at the last evaluation.
        on_memorized (`str`, defaults to "touchdown"): "touchdown", or "flag", which changes no sample.
        alpha_0, beta_0 (`float`, defaults to 0.0): as the detector was fitted with, which `kts audit` does without shaping.

    All other arguments are those of `KTSFlowMatchScheduler`.

    Raises:
        ValueError: a setting is out of range, or not as the detector was fitted with; in `set_timesteps`: another schedule;
            in `step`: latents of another size, or a run that does not begin at its first step.
    """

    __module__ = "diffusers_kts"
    setting_names = (*SHAPING, *(name for name in DETECTOR if name != "detector"))
    detector_threshold = Setting()
    detect_at = Setting()
    on_memorized = Setting()
    _step_index: Any
    _decision: Decision | None = None
    _flagged: torch.Tensor | None = None  # (B,) bool, once judged
    __init__ = shaped_init(FlowMatchEulerDiscreteScheduler, alpha_0=0.0, beta_0=0.0, **DETECTOR)  # type: ignore[assignment]

    def register_to_config(self, **settings: Any) -> None:
        """As in `KTSFlowMatchScheduler`; of a detector's file, its numbers are kept."""
        given = settings.get("detector")
        if given is not None and not isinstance(given, Mapping):
            if isinstance(given, (str, os.PathLike)):
                given = MemorizationDetector.load(given)
            if not isinstance(given, MemorizationDetector):
                raise ValueError(f"detector is {given!r:.80}; give the path of a detector.safetensors of kts audit.")
            settings["detector"] = given.to_dict()
        super().register_to_config(**settings)

    def check_configuration(self) -> None:
        """Refuse settings out of range, and a shaping that the detector was not fitted with."""
        super().check_configuration()
        c, detector = self.config, self.detector
        if not is_number(c.detector_threshold) or not 0 < c.detector_threshold < 1:
            raise ValueError(f"detector_threshold is {c.detector_threshold!r}; give a probability above 0 and below 1.")
        if not is_number(c.detect_at) or not 0 < c.detect_at <= 1:
            raise ValueError(f"detect_at is {c.detect_at!r}; give a flow time above 0, at most 1.")
        if c.on_memorized not in ACTIONS:
            raise ValueError(f"on_memorized is {c.on_memorized!r}; choose one of {', '.join(ACTIONS)}.")
        if c.detect_at == 1 and c.on_memorized == "touchdown":
            raise ValueError("detect_at is 1, where nothing is left to touch down from; give an earlier time.")
        if detector is not None:
            detector.linear(c.detect_at)
            detector.check(**path_settings(c))

    @property
    def detector(self) -> MemorizationDetector | None:
        """The detector of the configuration."""
        numbers = self.config.get("detector")
        return None if numbers is None else MemorizationDetector.from_dict(numbers)

    @detector.setter
    def detector(self, value: Any) -> None:
        self.register_to_config(detector=value)

    @property
    def is_off(self) -> bool:
        return super().is_off and self.config.detector is None

    @property
    def marks(self) -> tuple[float, ...]:  # type: ignore[override]
        return (self.config.detect_at,)

    def begin_run(self) -> None:
        """Also compares the schedule with the detector's."""
        self._flagged = None
        super().begin_run()
        if self.config.detector is not None:
            self._decide_when()

    def _decide_when(self) -> Decision:
        """The decision of the current plan."""
        plan = self.plan
        if self._decision is None or self._decision.plan is not plan:
            if exceeds_one(self.sigmas):
                raise ValueError("a detector needs noise levels up to 1; use KTSFlowMatchScheduler for this model.")
            detector, end = self.detector, self.config.detect_at
            assert detector is not None
            detector.check_times(torch.tensor(plan.times))
            later = [i for i, t in enumerate(plan.times[:-1]) if t >= end]
            at = later[0] if later else len(plan.gains) - 1
            self._decision = Decision(plan, detector, at, *detector.linear(end))
        return self._decision

    def step(
        self,
        model_output: torch.FloatTensor,
        timestep: float | torch.FloatTensor,
        sample: torch.FloatTensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple:
        """One Euler step; arguments and result as in `KTSFlowMatchScheduler.step`."""
        if self.config.detector is not None and per_token_timesteps is not None:
            raise ValueError("per_token_timesteps are not supported with a detector; use KTSFlowMatchScheduler.")
        resting = self._flagged
        churn = s_churn, s_tmin, s_tmax, s_noise
        moved: Any = super().step(model_output, timestep, sample, *churn, generator, per_token_timesteps, False)[0]
        if self._flagged is not None and self.config.on_memorized == "touchdown":
            stays: Any = sample
            if resting is None:
                stays = euler_step(sample, model_output, -self._way_left(self._step_index - 1))
            flagged = self._flagged.reshape(-1, *(1,) * (sample.ndim - 1))
            moved = torch.where(flagged, stays.to(moved.dtype), moved)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def _way_left(self, index: int) -> float:
        """From the noise level of an evaluation to that of the data."""
        return self.plan.levels[index] - float(self.config.invert_sigmas)

    def observe(self, index: int, v: torch.Tensor, gain: Any, **known: Any) -> None:
        """Record evaluation ``index``, and judge the samples when it is time."""
        if self.config.detector is not None:
            known["speed"] = self._judged(index, v, known.pop("power", None))
            gain = self._used(index, gain)
        super().observe(index, v, gain, **known)

    def _judged(self, index: int, v: torch.Tensor, power: torch.Tensor | None) -> Any:
        """The speed of evaluation ``index``; at that of the decision, the samples are judged."""
        decision, recorder = self._decide_when(), self.recorder
        recorder.record_turn = True
        speed = recorder.measure(v, power)
        if index > decision.at:
            return speed
        if (made := len(recorder.runs[-1].speeds)) != index:
            raise ValueError(
                f"step {index} follows {made} others: a detector reads runs that begin with noise and go on step by step; use "
                "KTSFlowMatchScheduler for image-to-image."
            )
        if index == 0:
            decision.detector.check(d=v[0].numel())
        if index == decision.at:
            (seen, _, turn), n = recorder.so_far(speed), len(decision.weights)
            assert turn is not None
            weights = decision.weights.to(seen.device, torch.float32 if seen.device.type == "mps" else torch.float64)
            judged = probability(seen[:, :n], turn[:, :n], weights, decision.bias).float()
            recorder.runs[-1].memorization_probability = judged
            self._flagged = judged >= self.config.detector_threshold
        return speed

    def _used(self, index: int, gain: float) -> Any:
        """The gain of evaluation ``index``, (B,) once some samples have touched down."""
        if self._flagged is None or self.config.on_memorized != "touchdown":
            return gain
        arriving = abs(self._way_left(index)) / max(abs(self.plan.interval(index)), TINY)
        return torch.where(self._flagged, arriving if index == self._decide_when().at else 0.0, gain)
