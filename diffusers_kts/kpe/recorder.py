"""KPERecorder: collects the speed of every sample while a scheduler steps."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..euler_step import euler_step
from ..flow_coordinates import flow_times
from .guidance import Guidance, Predictions
from .sums import distance, squared_norm
from .trace import GUIDANCE, KPETrace


class Speed(NamedTuple):
    """What is measured of a velocity: ``power`` (B,) its squared norm, ``turn`` (B,) its distance to the one before, and
    its guidance, or why that is not known."""

    power: torch.Tensor
    turn: torch.Tensor | None = None
    guidance: Guidance | str | None = None


class Source(NamedTuple):
    """What a velocity was made of: ``output`` (B, ...) of a network that predicts something else, by ``to_velocity``."""

    output: torch.Tensor
    to_velocity: Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Run:
    """One run, step by step; power and turn stay on the device of the velocity.

    Attributes:
        settings: of the scheduler, kept in the record.
        tau_split: flow time that divides early from late.
        invert_sigmas: whether levels are flow times.
        quadrature: how the powers are added up.
        d: latent dimensions of a sample.
        begins: noise level at which each step began.
        ends: noise level at which it ended.
        speeds: `Speed` of each step.
        gains: gain of each step, a float or (B,).
        last_velocity: kept while the turn is recorded.
        moved: (B, ...) sum of the displacements, while they are recorded from the first step on.
        displacement: (B,) its norm, once the run has ended.
        memorization_probability: (B,) as a detector judged the samples, if one did.
    """

    settings: Mapping[str, Any]
    tau_split: float
    invert_sigmas: bool = False
    quadrature: str = "left"
    d: int = 0
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    gains: list[Any] = field(default_factory=list)
    last_velocity: torch.Tensor | None = None
    moved: torch.Tensor | None = None
    displacement: torch.Tensor | None = None
    memorization_probability: torch.Tensor | None = None

    @property
    def power(self) -> torch.Tensor:
        """(B, n)."""
        return torch.stack([speed.power for speed in self.speeds], 1)

    @property
    def turn(self) -> torch.Tensor | None:
        """(B, n), or None if a step has none."""
        turns = [speed.turn for speed in self.speeds if speed.turn is not None]
        return torch.stack(turns, 1) if len(turns) == len(self.speeds) else None

    def guidance(self) -> dict[str, torch.Tensor] | str:
        """Columns (B, n) of the record, or why they are not known: empty where every step had one prediction."""
        splits = [speed.guidance for speed in self.speeds]
        for i, split in enumerate(splits):
            if not isinstance(split, Guidance):
                return f"at step {i} {split}" if split else ""
        misfits = torch.stack([split.misfit for split in splits]).tolist()  # type: ignore[union-attr]
        if bad := [i for i, misfit in enumerate(misfits) if misfit > 1]:
            return (
                f"at step {bad[0]} the velocity is no v_u + s (v_c - v_u), s >= 1, of the network's predictions: guidance may "
                "be rescaled, limited to some channels, or below 1, or the pipeline turns the output into another form"
            )
        if all(split.predictions == 1 for split in splits):  # type: ignore[union-attr]
            return ""
        columns = zip(*((g.scale.expand_as(g.norm), g.conditional_power, g.norm) for g in splits), strict=True)  # type: ignore[union-attr]
        return dict(zip(GUIDANCE, (torch.stack(column, 1) for column in columns), strict=True))

    def net_displacement(self) -> torch.Tensor | None:
        """(B,), or None if it is not recorded."""
        return self.displacement if self.moved is None else squared_norm(self.moved).sqrt()

    def close(self) -> None:
        """The run has ended: what only a further step would need is let go."""
        self.displacement, self.moved, self.last_velocity = self.net_displacement(), None, None


class KPERecorder:
    """Collects ``||v||^2`` while a scheduler steps: B floats a step, on the device of the velocity, no synchronization.

    A deep copy of the scheduler (audio latents, per-frame schedules) records into its own stream. Inside a monitored
    pipeline call, `session` gathers every stream and every run; outside, only the last run is kept.

    Attributes:
        stream: name of the scheduler in its pipeline.
        session: recorders of the pipeline call, or None outside of one.
        runs: what was recorded, the present run last.
        record_turn: whether to record the turn of the velocity, too, for which one velocity is kept until the run ends;
            set it before the run.
        record_displacement: whether to record the net displacement, too, for which the sum of the displacements, one latent in
            fp32, is kept until the next run begins; set it before the run.
        predictions: of the network, while guidance is recorded: the pipeline's own scheduler alone has them.
    """

    def __init__(self, stream: str = "scheduler") -> None:
        self.stream = stream
        self.session: list[KPERecorder] | None = None
        self.runs: list[Run] = []
        self.record_turn = False
        self.record_displacement = False
        self.predictions: Predictions | None = None
        self._warned: set[str] = set()

    @property
    def has_begun(self) -> bool:
        """Whether the current run has made a step."""
        return bool(self.runs and self.runs[-1].speeds)

    def begin(self, run: Run) -> None:
        """A run begins: the scheduler's `set_timesteps` was called."""
        for last in self.runs[-1:]:
            last.close()
        if self.session is None:
            self.runs = []
        elif self.runs and not self.runs[-1].speeds:
            self.runs.pop()  # set twice before the first step
        self.runs.append(run)
        self._warned = set()
        if self.predictions is not None:
            self.predictions.outputs.clear()

    def measure(self, v: torch.Tensor, power: torch.Tensor | None = None, source: Source | None = None) -> Speed:
        """The speed of velocity ``v`` (B, ...), not recorded yet; ``power`` (B,) is ``||v||^2`` if it is known already, and
        ``source`` what ``v`` was made of, where the network predicts something else."""
        v = v.detach()
        if power is None:
            power = squared_norm(v)
        turn, guidance = None, None
        if self.record_turn:
            run = self.runs[-1]
            known = run.last_velocity is not None and run.last_velocity.shape == v.shape
            turn = distance(v, run.last_velocity) if known else torch.zeros_like(power)  # type: ignore[arg-type]
        if self.predictions is not None:
            guidance = self.predictions.split(*(source or Source(v, lambda v: v)))
        return Speed(power, turn, guidance)

    def record(self, v: torch.Tensor, speed: Speed, begin: float, end: float, gain: Any = 1.0, factor: Any = None) -> None:
        """One step was made along ``v`` from noise level ``begin`` to ``end``, scaled by ``gain``, a float or (B,).

        It moved the sample by ``factor * v``; by default by ``gain * (begin - end) * v``, towards the data as a velocity
        ``dx/d(1 - t)`` counts it.
        """
        run, d = self.runs[-1], math.prod(v.shape[1:])
        if run.speeds and (run.d != d or run.speeds[0].power.shape != speed.power.shape):
            # other samples without set_timesteps
            self.begin(Run(run.settings, run.tau_split, run.invert_sigmas, run.quadrature))
            run = self.runs[-1]
        if self.record_displacement and (run.moved is not None or not run.speeds):
            run.moved = _moved(run.moved, v.detach(), gain * (begin - end) if factor is None else factor)
        else:
            run.moved = run.displacement = None
        run.d = d
        run.begins.append(begin)
        run.ends.append(end)
        run.speeds.append(speed)
        run.gains.append(gain)
        # a copy: compiled networks write the next velocity where this one lies
        if self.record_turn:
            run.last_velocity = v.detach().clone()

    def observe(
        self,
        v: torch.Tensor,
        begin: float,
        end: float,
        gain: Any = 1.0,
        power: torch.Tensor | None = None,
        speed: Speed | None = None,
        factor: Any = None,
        source: Source | None = None,
    ) -> None:
        """`measure` a step, unless its ``speed`` has been measured, and `record` it."""
        self.record(v, speed or self.measure(v, power, source), begin, end, gain, factor)

    def so_far(self, present: Speed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Power, gains and turn (if recorded) of the steps of this run and of the present one, each (B, n), on the device of
        the velocity. The gain of the present step is not chosen yet: 1."""
        run = self.runs[-1]
        run = Run(run.settings, run.tau_split, speeds=[*run.speeds, present], gains=[*run.gains, 1.0])
        power = run.power
        # numbers are filled in on the device, since copies to it would wait
        gains = [gain if isinstance(gain, torch.Tensor) else torch.full_like(power[:, 0], gain) for gain in run.gains]
        return power, torch.stack(gains, 1), run.turn

    def observe_tokens(
        self, v: torch.Tensor, begin: float, end: float, gain: Any, token_dt: torch.Tensor, source: Source | None = None
    ) -> None:
        """A step in which every token went its own interval ``token_dt`` (B, S, 1), with ``gain``, a float or (B, S, 1).

        It is recorded as the power and gain (B,) that give the same energies over the interval of the schedule; guidance
        likewise, of the velocity or of its ``source``.
        """
        dt, gain = token_dt.detach(), torch.as_tensor(gain).detach()
        interval = max(abs(end - begin), torch.finfo(torch.float32).tiny)
        share = (dt / interval).sqrt()
        output, to_velocity = source or Source(v, lambda v: v)
        source = Source(output, lambda output: to_velocity(output) * share)
        v = v.detach() * share
        power, factor = squared_norm(v), gain * (dt * interval).sqrt()
        gain = torch.where(power > 0, squared_norm(gain * v) / power, 1.0).sqrt()
        self.observe(v, begin, end, gain, power, factor=factor, source=source)

    def end_run(self) -> None:
        """No further step is planned: what only the next one would need is let go."""
        self.runs[-1].last_velocity = None

    def close(self) -> None:
        """No further step will be made, also where fewer were than planned."""
        for run in self.runs:
            run.close()

    def trace(self, number: int = -1) -> KPETrace | None:
        """The record so far of a run; reads the device once. Warns once about velocities that were not finite."""
        run = self.runs[number] if self.runs else None
        if run is None or not run.speeds:
            return None
        power = run.power.cpu()
        optional = {
            "turn": run.turn,
            "displacement": run.net_displacement(),
            "memorization_probability": run.memorization_probability,
        }
        guidance = run.guidance()
        if isinstance(guidance, dict):
            optional |= guidance
        elif guidance:
            self._warn("guidance", f"guidance is not recorded: {guidance}.")
        ends = torch.tensor(run.ends)
        sigmas = torch.tensor([*run.begins, run.ends[-1]])
        if any(isinstance(gain, torch.Tensor) for gain in run.gains):
            columns = [g.cpu() if isinstance(g, torch.Tensor) else torch.tensor(g) for g in run.gains]
            gains = torch.stack([column.to(torch.float64).expand(len(power)) for column in columns], 1)
        else:
            gains = torch.tensor(run.gains, dtype=torch.float64)
        trace = KPETrace(
            power=power,
            sigmas=sigmas,
            t=flow_times(sigmas, run.invert_sigmas, [run.tau_split]),
            gains=gains,
            tau_split=run.tau_split,
            d=run.d,
            stream=self.stream,
            run=number if number >= 0 else len(self.runs) + number,
            settings=dict(run.settings),
            quadrature=run.quadrature,
            ends=None if torch.equal(ends, sigmas[1:]) else ends,
            **{name: value.cpu() for name, value in optional.items() if value is not None},
        )
        if nonfinite := _nonfinite(trace):
            self._warn("nonfinite", nonfinite)
        return trace

    def traces(self) -> list[KPETrace]:
        """The records of all runs."""
        return [trace for i in range(len(self.runs)) if (trace := self.trace(i)) is not None]

    def _warn(self, about: str, message: str) -> None:
        """The caller of `trace`, once a run."""
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def __deepcopy__(self, memo: dict) -> "KPERecorder":
        """A copy records on its own: lists are copied, the tensors in them never change."""
        number = 1 + (len(self.session) if self.session is not None else 0)
        twin = KPERecorder(f"{self.stream} copy {number}" if self.session is not None else self.stream)
        twin.runs = [copy.copy(run) for run in self.runs[-1:]]
        twin.record_turn, twin.record_displacement = self.record_turn, self.record_displacement
        for run in twin.runs:
            run.begins, run.ends, run.speeds, run.gains = list(run.begins), list(run.ends), list(run.speeds), list(run.gains)
        twin.session = self.session
        if self.session is not None:
            self.session.append(twin)
        return twin


def _nonfinite(trace: KPETrace) -> str:
    """Which velocities were not finite, in words; empty if all were."""
    bad = (trace.nonfinite >= 0).nonzero().flatten().tolist()
    if not bad:
        return ""
    first = ", ".join(f"sample {i} from step {int(trace.nonfinite[i])}" for i in bad[:8])
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    return (
        f"the velocity was not finite for {first}{more}; their energies are NaN or infinite, the others are right. Try a "
        "wider dtype or another seed."
    )


def _moved(so_far: torch.Tensor | None, v: torch.Tensor, factor: Any) -> torch.Tensor:
    """(B, ...) the sum of displacements and of the next, ``factor * v``, in at least fp32."""
    if so_far is None:
        so_far = torch.zeros_like(v, dtype=torch.promote_types(v.dtype, torch.float32))
    if isinstance(factor, torch.Tensor) and factor.ndim == 1:
        factor = factor.reshape(-1, *(1,) * (v.ndim - 1))
    return euler_step(so_far, v, factor)
