"""KPE, kinetic path energy: what a run of the sampler measured, and the recorder that measures it.

``E = 1/2 sum_i w_i ||v_i||^2`` per sample: after Euler steps ``w_i = |sigma_{i+1} - sigma_i|``, the left Riemann sum that
belongs to them (arXiv 2602.07928); after steps of higher order the trapezoidal rule, see `quadrature_weights`. Units: squared
latent units. Sums run over every dimension but the first.
"""

import copy
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.linalg import vecdot, vector_norm

from ..gain import ON_GRID, flow_times

FORMAT = "diffusers-kts/kpe"
FORMAT_VERSION = "1"
QUADRATURES = ("left", "trapezoid")
DECIDED, SETTLED = 0.5, 0.9  # flow times: before the one `settling` looks for movement, from the other for rest
ROW, SHORTEST_ROW = 512, 64  # numbers added up in a row: the greatest common divisor of the first and the sample's size
LONGEST_SUM = 2**15  # above it, torch's threads would divide the sum of a sample, but not those of several
BLOCK = 2**19  # numbers widened at a time: 2 MiB of fp32, about what the cores have in their own caches
LATE_START = 0.02  # a record that begins after this flow time lacks the launch (img2img, inpainting, custom sigmas)


@dataclass(frozen=True)
class Energy:
    """An energy per sample, shape (B,): the whole path, before ``tau_split``, and from ``tau_split`` on."""

    total: torch.Tensor
    early: torch.Tensor
    late: torch.Tensor
    d: int

    @property
    def per_dim(self) -> "Energy":
        """The same divided by the number of latent dimensions, the form that compares across resolutions."""
        return Energy(self.total / self.d, self.early / self.d, self.late / self.d, 1)


@dataclass(frozen=True, repr=False, eq=False)
class KPETrace:
    """The energy record of one run.

    Attributes:
        power (`torch.Tensor`, (B, N)): squared speed ``||v_i||^2`` of the network's field, per sample and network evaluation.
        sigmas (`torch.Tensor`, (N + 1,)): noise levels at the evaluations, and where the last step ended.
        t (`torch.Tensor`, (N + 1,)): flow times of ``sigmas``, 0 noise to 1 data.
        gains (`torch.Tensor`, (N,) or (B, N)): ``eta`` that scaled each displacement; ones without shaping.
        tau_split (`float`): flow time that divides early from late.
        d (`int`): latent dimensions per sample.
        stream (`str`): which scheduler of the pipeline was measured ("scheduler", "audio_scheduler", "scheduler copy 1").
        run (`int`): number of the run within the pipeline call, from 0; a run begins at `set_timesteps`.
        settings (`dict`): scheduler class and shaping settings.
        quadrature (`str`): "left" (Euler) or "trapezoid" (Heun, multistep).
        turn (`torch.Tensor`, (B, N), *optional*): ``||v_i - v_{i-1}||``, 0 at the first evaluation; recorded on request, see
            `KPERecorder`.
    """

    power: torch.Tensor
    sigmas: torch.Tensor
    t: torch.Tensor
    gains: torch.Tensor
    tau_split: float
    d: int
    stream: str = "scheduler"
    run: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    quadrature: str = "left"
    turn: torch.Tensor | None = None

    def __post_init__(self) -> None:
        steps = self.power.shape[-1]
        if self.power.ndim != 2 or len(self.sigmas) != steps + 1 or len(self.t) != steps + 1 or self.gains.shape[-1] != steps:
            raise ValueError(
                f"power is {tuple(self.power.shape)}, sigmas {tuple(self.sigmas.shape)}, t {tuple(self.t.shape)}, gains "
                f"{tuple(self.gains.shape)}; give (B, N), (N + 1,), (N + 1,) and (N,) or (B, N)."
            )
        if self.turn is not None and self.turn.shape != self.power.shape:
            raise ValueError(f"turn is {tuple(self.turn.shape)}, power {tuple(self.power.shape)}; give the same shape.")
        if self.quadrature not in QUADRATURES:
            raise ValueError(f"quadrature is {self.quadrature!r}; choose one of {', '.join(QUADRATURES)}.")

    def __len__(self) -> int:
        return self.power.shape[0]

    def __repr__(self) -> str:
        late = ", a late start" if self.late_start else ""
        return (
            f"<KPETrace of {self.settings.get('scheduler', 'a scheduler')}: {len(self)} samples, {self.num_steps} steps "
            f"from t = {self.t_start:.3g} to {float(self.t[-1]):.3g}{late}; mean energy per dim {self.per_dim.nanmean():.4g}>"
        )

    @property
    def num_steps(self) -> int:
        return self.power.shape[1]

    @property
    def t_start(self) -> float:
        """Flow time at which the record begins; above 0 for img2img, whose energy is that of the rest of the path."""
        return float(self.t[0])

    @property
    def late_start(self) -> bool:
        return self.t_start > LATE_START

    @property
    def nonfinite(self) -> torch.Tensor:
        """(B,) first step, counted from 0, whose velocity was NaN or infinite; -1 for samples without one."""
        bad = ~torch.isfinite(self.power)
        return torch.where(bad.any(1), bad.int().argmax(1), -1)

    @property
    def weights(self) -> torch.Tensor:
        """(N,) float64 flow time that each evaluation stands for, see `quadrature_weights`."""
        return quadrature_weights(self.sigmas, self.quadrature)

    @property
    def path_power(self) -> torch.Tensor:
        """(B, N) squared speed of the motion that really happened, ``eta^2 ||v||^2``."""
        return self.power * self.gains.to(self.power.dtype) ** 2

    @property
    def path_energy(self) -> Energy:
        """Energy of the motion that really happened (what the reference code reports)."""
        return self._energy(self.path_power)

    @property
    def model_energy(self) -> Energy:
        """Energy of the network's own field along the (possibly shaped) path."""
        return self._energy(self.power)

    @property
    def per_dim(self) -> torch.Tensor:
        """(B,) total path energy per latent dimension."""
        return self.path_energy.total / self.d

    def estimate_change(self, start: float = 0.0, end: float = 1.0) -> torch.Tensor:
        """(B,) length of the way that the data estimate ``x + (1 - t) v`` goes from flow time ``start`` up to ``end``,
        ``sum_i (1 - t_i) ||v_i - v_{i-1}||``: exact for plain Euler steps.

        Raises:
            ValueError: the turn was not recorded.
        """
        turn, t = self._recorded_turn(), self.t[:-1]
        during = (t > start - ON_GRID) & (t < end - ON_GRID)
        return (turn * ((1 - t) * during).to(turn)).sum(1)

    @property
    def settling(self) -> torch.Tensor:
        """(B,) memorization score: log of `estimate_change` before t = 0.5 over that from t = 0.9 on. High where the sample
        was decided early and then rests, as memorized ones are; NaN where the record lacks one of the two (touchdown).

        Ours; how well it tells memorized samples is measured in ``benchmarks/science/memorization_score.py``.

        Raises:
            ValueError: as `estimate_change`.
        """
        early, late = self.estimate_change(0.0, DECIDED), self.estimate_change(SETTLED)
        return torch.where((early > 0) & (late > 0), (early / late).log(), torch.nan)

    @property
    def turning(self) -> torch.Tensor:
        """(B, N) `turning_so_far`, what `KTSAdaptiveFlowMatchScheduler` goes by.

        Raises:
            ValueError: as `estimate_change`.
        """
        return turning_so_far(self.power, self._recorded_turn(), self.t[:-1].to(self.power))

    def _recorded_turn(self) -> torch.Tensor:
        if self.turn is None:
            raise ValueError("the turn was not recorded; set record_turn = True on the scheduler or the monitored pipeline.")
        return self.turn

    def _energy(self, power: torch.Tensor) -> Energy:
        share = 0.5 * power * self.weights.to(power.dtype)
        early = (self.t[:-1] < self.tau_split).to(power.device)
        zero = torch.zeros((), dtype=share.dtype)
        return Energy(share.sum(1), torch.where(early, share, zero).sum(1), torch.where(early, zero, share).sum(1), self.d)

    def to_dict(self) -> dict[str, list]:
        """Columns of one row per sample, as lists."""
        columns: dict[str, list] = {"sample": list(range(len(self)))}
        for name, energy in (("path_energy", self.path_energy), ("model_energy", self.model_energy)):
            for part in ("total", "early", "late"):
                columns[f"{name}_{part}"] = getattr(energy, part).tolist()
        columns["per_dim"] = self.per_dim.tolist()
        if self.turn is not None:
            columns["settling"] = self.settling.tolist()
        columns["nonfinite_step"] = self.nonfinite.tolist()
        return columns

    def to_pandas(self, per_step: bool = False) -> Any:
        """A `pandas.DataFrame`: a row per sample, or with ``per_step`` a row per sample and step."""
        import pandas as pd

        if not per_step:
            return pd.DataFrame(self.to_dict())
        b, n = self.power.shape
        columns = {"sample": torch.arange(b)[:, None], "step": torch.arange(n), "sigma": self.sigmas[:-1], "t": self.t[:-1]}
        columns |= {"eta": self.gains, "power": self.power, "path_power": self.path_power}
        return pd.DataFrame({name: torch.broadcast_to(value, (b, n)).flatten().numpy() for name, value in columns.items()})

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Power against flow time, median and 10-90 % band, with ``tau_split`` and ``eta``. Returns the matplotlib axes."""
        from ..plotting import plot_power

        return plot_power({label or self.settings.get("scheduler", "run"): self}, ax=ax)

    def save(self, path: str | os.PathLike) -> None:
        """Write the record as safetensors with metadata; an existing file is replaced only once the new one is whole."""
        from safetensors.torch import save

        meta = {"tau_split": self.tau_split, "d": self.d, "stream": self.stream, "run": self.run, "settings": self.settings}
        meta["quadrature"] = self.quadrature
        metadata = {"format": FORMAT, "version": FORMAT_VERSION, "trace": json.dumps(meta)}
        tensors = {name: getattr(self, name) for name in ("power", "sigmas", "t", "gains", "turn")}
        tensors = {name: value.contiguous() for name, value in tensors.items() if value is not None}
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} does not exist; make that folder first, or give another path.")
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(save(tensors, metadata=metadata))
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "KPETrace":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file. ValueError: the file is damaged, or is not an energy record.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; give a file written by KPETrace.save.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged or not safetensors ({error}); give a file written by KPETrace.save."
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no energy record (format {metadata.get('format')!r}, not {FORMAT!r}).")
        if metadata.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {metadata.get('version')}; this release reads {FORMAT_VERSION}: upgrade."
            )
        try:
            return cls(**tensors, **json.loads(metadata["trace"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged energy record ({error}); write it again with KPETrace.save.") from error

    @classmethod
    def cat(cls, traces: "list[KPETrace]") -> "KPETrace":
        """Records of several batches of the same schedule, as one."""
        if not traces:
            raise ValueError("there is no trace to join; give at least one.")
        first = traces[0]
        for other in traces[1:]:
            same = first.d == other.d and first.settings == other.settings and (first.turn is None) == (other.turn is None)
            if not same or not torch.equal(first.sigmas, other.sigmas):
                raise ValueError("the traces differ in schedule, size or settings; join records of the same sampler only.")
        gains = first.gains
        if gains.ndim == 2:
            gains = torch.cat([trace.gains for trace in traces])
        power = torch.cat([trace.power for trace in traces])
        turn = None if first.turn is None else torch.cat([trace.turn for trace in traces if trace.turn is not None])
        return replace(first, power=power, gains=gains, turn=turn)


def quadrature_weights(sigmas: torch.Tensor, quadrature: str = "left") -> torch.Tensor:
    """(N,) float64 flow time that each evaluation stands for, given the N + 1 levels of a schedule: the step it begins
    ("left", first order), or the mean of the intervals on its two sides ("trapezoid", second order). No evaluation ends the
    last step, so it counts whole.

    Of the two evaluations that Heun makes at a noise level, the one before ends a step and the other begins one: each has an
    empty interval on one side.
    """
    dt = sigmas.double().diff().abs()
    if quadrature == "left":
        return dt
    ended, begun = dt.roll(1), dt.clone()
    ended[0], begun[-1] = 0, 2 * dt[-1]
    return (ended + begun) / 2


def turning_so_far(power: torch.Tensor, turn: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(B, N) how far the data estimate has moved up to each evaluation, over the speed there,
    ``sum_{j<=i} (1 - t_j) ||v_j - v_{j-1}|| / ||v_i||``: no unit, and known while sampling. High where a sample is decided
    early, as memorized ones are. Ours; how well it tells them is measured in ``benchmarks/science/adaptive.py``.

    Args:
        power, turn (`torch.Tensor`, (B, N)), t (`torch.Tensor`, (N,)): of a record, see `KPETrace`.
    """
    return (turn * (1 - t)).cumsum(1) / power.sqrt()


class Rows(NamedTuple):
    """How a batch is cut to be summed: (B, rows, length), and how many numbers of each sample are left over."""

    shape: tuple[int, int, int]
    rest: int

    @classmethod
    def of(cls, shape: torch.Size) -> "Rows":
        d = math.prod(shape[1:])
        row = math.gcd(d, ROW)
        if row < SHORTEST_ROW:
            row = min(d, ROW)
        return cls((shape[0], d // row, row), d % row)


def squared_norm(v: torch.Tensor, out: torch.Tensor | None = None, rows: Rows | None = None) -> torch.Tensor:
    """(B,) ``||v||^2`` of a batch, summed in at least fp32 over all dimensions but the first, whatever the layout; written
    into ``out`` (of that dtype) if it is given. ``rows`` are those of its shape, for callers that keep them.

    On the CPU a sample is cut into rows, whose sums are added: one running fp32 sum of millions of squares would be 1e-4 off,
    and one core alone would make it. Cut like this, that of a contiguous sample also does not depend on the rest of the
    batch. Narrow dtypes are widened in blocks that stay in the cache.
    """
    if not v.is_cpu:
        wide = torch.promote_types(v.dtype, torch.float32)
        if v.ndim == 1:
            return torch.square(v.to(wide), out=out)
        # one kernel, which widens as it reads
        return torch.square(vector_norm(v, dim=tuple(range(1, v.ndim)), dtype=wide), out=out)
    shape, rest = rows or Rows.of(v.shape)
    if rest:
        flat = v.reshape(shape[0], shape[1] * shape[2] + rest)
        norms = torch.cat([_norms(flat[:, :-rest].unflatten(1, shape[1:])), _norms(flat[:, -rest:].unsqueeze(1))], 1)
    elif shape[1] == 1:
        norms = v.reshape(shape[0], shape[2]).to(torch.promote_types(v.dtype, torch.float32))
    else:
        norms = _norms(v.reshape(shape))
    if shape[1] >= LONGEST_SUM:
        return squared_norm(norms, out)
    if out is None:  # always given, since autocast would narrow a new one
        out = norms.new_empty(shape[0])
    return vecdot(norms, norms, out=out)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """(B, rows) norms along the last dimension of (B, rows, length)."""
    if rows.element_size() >= 4:
        return vector_norm(rows, dim=2)
    if rows.numel() <= BLOCK:
        return vector_norm(rows.float(), dim=2)
    blocks = rows.flatten(0, 1).split(BLOCK // rows.shape[2])
    return torch.cat([vector_norm(block.float(), dim=1) for block in blocks]).view(rows.shape[:2])


def _distance(v: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
    """(B,) ``||v - last||`` in at least fp32, or zeros."""
    wide = torch.promote_types(v.dtype, torch.float32)
    return squared_norm(v.to(wide) - (v if last is None else last).to(wide)).sqrt()


def token_intervals(token_sigmas: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """(B, S, 1) interval from every token's own noise level (B, S) to the next lower one of the schedule, as diffusers'
    per-token steps go; 0 for tokens that are clean already."""
    table = sigmas[:, None, None]
    lower = ((table < token_sigmas[None] - 1e-6) * table).amax(0)
    return (token_sigmas - lower)[..., None]


@dataclass
class _Run:
    settings: Mapping[str, Any]
    tau_split: float
    invert_sigmas: bool
    quadrature: str = "left"
    sigmas: torch.Tensor | None = None
    d: int = 0
    steps: list[int] = field(default_factory=list)
    power: torch.Tensor | None = None  # (N or more, B)
    entries: tuple[torch.Tensor, ...] = ()  # of power, (B,) each: to make a view takes as long as a small kernel
    kind: tuple | None = None  # shape, dtype and device of the last velocity
    cut: Rows | None = None  # of that shape
    gains: list[Any] = field(default_factory=list)
    turn: list[torch.Tensor] = field(default_factory=list)
    last_velocity: torch.Tensor | None = None

    def make_room(self, steps: int, like: torch.Tensor) -> None:
        """Room for the powers of so many more steps, in the dtype and on the device of ``like`` (B,).

        One tensor from the start of a run: a small one kept at every step would come to lie where latents were, and the
        allocator would have to look for new memory for the next ones.
        """
        with torch.inference_mode(False):  # so that a later step may write into it, in whatever mode
            room = torch.empty(max(steps, 1), *like.shape, dtype=like.dtype, device=like.device)
            self.power = room if self.power is None else torch.cat([self.power, room])
            self.entries = self.power.unbind()

    def own_record(self) -> None:
        """Write from now on into a record that no other run has."""
        if self.power is not None:
            with torch.inference_mode(False):
                self.power = self.power.clone()
                self.entries = self.power.unbind()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"entries": ()}  # pickled views would be tensors of their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.own_record()

    def recorded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Power, and turn if every step has one, each (B, n), on the device of the velocity."""
        assert self.power is not None
        power = self.power[: len(self.steps)].T.clone(memory_format=torch.contiguous_format)  # so sums do not depend on B
        return power, torch.stack(self.turn, 1) if len(self.turn) == len(self.steps) else None


class KPERecorder:
    """Collects ``||v||^2`` while a scheduler steps: B floats a step, on the device of the velocity, no synchronisation.

    A deep copy of the scheduler (audio latents, per-frame schedules) records into a stream of its own. Inside a monitored
    pipeline call, `session` gathers every stream and every run; outside, only the last run is kept.

    With ``record_turn``, set before the run, it also records the turn of the velocity, for which a copy of the last velocity
    is kept until the run ends.
    """

    def __init__(self, stream: str = "scheduler") -> None:
        self.stream = stream
        self.session: list[KPERecorder] | None = None
        self.runs: list[_Run] = []
        self.record_turn = False
        self._warned = False

    @property
    def has_begun(self) -> bool:
        """Whether the current run has made a step."""
        return bool(self.runs and self.runs[-1].steps)

    def begin(
        self, settings: Mapping[str, Any], tau_split: float, invert_sigmas: bool = False, quadrature: str = "left"
    ) -> None:
        """A run begins: the scheduler's `set_timesteps` was called."""
        for run in self.runs[-1:]:
            run.last_velocity = None
        if self.session is None:
            self.runs = []
        elif self.runs and not self.runs[-1].steps:
            self.runs.pop()  # set twice before the first step
        self.runs.append(_Run(settings, tau_split, invert_sigmas, quadrature))
        self._warned = False

    def observe(
        self,
        step_index: int,
        sigmas: torch.Tensor,
        v: torch.Tensor,
        gain: Any = 1.0,
        power: torch.Tensor | None = None,
        token_dt: torch.Tensor | None = None,
    ) -> None:
        """One step was made along ``v`` with ``gain`` eta; ``power`` (B,) where the step has computed ``||v||^2`` already,
        ``token_dt`` (B, S, 1) where every token has its own interval.

        Per-token steps are recorded as the power and gain that give the same energies over the schedule's interval.
        """
        run, v = self.runs[-1], v.detach()
        step, kind = len(run.steps), (v.shape, v.dtype, v.device)
        if kind == run.kind and power is None and token_dt is None and step < len(run.entries):
            squared_norm(v, run.entries[step], run.cut)
        else:
            if token_dt is not None:
                dt, gain = token_dt.detach(), torch.as_tensor(gain).detach()
                nominal = (sigmas[step_index + 1] - sigmas[step_index]).detach().abs()
                v = v * (dt / nominal.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
                power = squared_norm(v)
                gain = torch.where(power > 0, squared_norm(gain * v) / power, 1.0).sqrt()
            elif power is None:
                power = squared_norm(v)
            d = math.prod(v.shape[1:])
            if run.power is not None and (run.power.shape[1:], run.d) != (power.shape, d):
                # other samples without set_timesteps
                self.begin(run.settings, run.tau_split, run.invert_sigmas, run.quadrature)
                run, step = self.runs[-1], 0
            if step == len(run.entries):
                run.make_room(sigmas.shape[0] - 1, power)
            entry, run.d, run.cut = run.entries[step], d, Rows.of(v.shape)
            entry.copy_(power)
            run.kind = kind if (power.dtype, power.device) == (entry.dtype, entry.device) else None
        run.sigmas = sigmas
        run.steps.append(step_index)
        run.gains.append(gain)
        if self.record_turn and len(run.turn) == len(run.steps) - 1:
            run.turn.append(_distance(v, run.last_velocity))
            # a copy: compiled networks write the next velocity where this one lies
            run.last_velocity = v.clone() if step_index + 2 < len(sigmas) else None

    def so_far(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Power, gains and turn (if recorded) of the steps of this run, each (B, n), on the device of the velocity."""
        run = self.runs[-1]
        power, turn = run.recorded()
        # numbers are filled in on the device, since copies to it would wait
        gains = [gain if isinstance(gain, torch.Tensor) else torch.full_like(power[:, 0], gain) for gain in run.gains]
        return power, torch.stack(gains, 1), turn

    def correct_gain(self, gain: torch.Tensor) -> None:
        """The step observed last was made with ``gain`` (B,), which could only be chosen once its velocity was known."""
        self.runs[-1].gains[-1] = gain

    def trace(self, run: int = -1) -> KPETrace | None:
        """The record so far; reads the device once. Warns once about velocities that were not finite."""
        r = self.runs[run] if self.runs else None
        if r is None or r.sigmas is None or r.power is None:
            return None
        power, turn = r.recorded()
        power, turn = power.cpu(), None if turn is None else turn.cpu()
        steps = torch.tensor([*r.steps, r.steps[-1] + 1])
        sigmas = r.sigmas.detach().cpu()
        t = flow_times(sigmas, r.invert_sigmas, [r.tau_split])
        if any(isinstance(gain, torch.Tensor) for gain in r.gains):
            gains = torch.stack([torch.as_tensor(g).expand(len(power)).double().cpu() for g in r.gains], 1)
        else:
            gains = torch.tensor(r.gains, dtype=torch.float64)
        number = run if run >= 0 else len(self.runs) + run
        trace = KPETrace(
            power, sigmas[steps], t[steps], gains, r.tau_split, r.d, self.stream, number, dict(r.settings), r.quadrature, turn
        )
        self._warn(trace)
        return trace

    def traces(self) -> list[KPETrace]:
        return [trace for i in range(len(self.runs)) if (trace := self.trace(i)) is not None]

    def _warn(self, trace: KPETrace) -> None:
        bad = (trace.nonfinite >= 0).nonzero().flatten().tolist()
        if bad and not self._warned:
            self._warned = True
            first = ", ".join(f"sample {i} from step {int(trace.nonfinite[i])}" for i in bad[:8])
            more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
            warnings.warn(
                f"the velocity was not finite for {first}{more}; their energies are NaN or infinite, the others are right. "
                "Try a wider dtype or another seed.",
                RuntimeWarning,
                stacklevel=3,
            )

    def __deepcopy__(self, memo: dict) -> "KPERecorder":
        """Records of a copy are its own: the lists are copied, the tensors in them never change; ``power`` is written into."""
        number = 1 + (len(self.session) if self.session is not None else 0)
        twin = KPERecorder(f"{self.stream} copy {number}" if self.session is not None else self.stream)
        twin.runs, twin.record_turn = [copy.copy(run) for run in self.runs[-1:]], self.record_turn
        for run in twin.runs:
            run.steps, run.gains, run.turn = list(run.steps), list(run.gains), list(run.turn)
            run.own_record()
        twin.session = self.session
        if self.session is not None:
            self.session.append(twin)
        return twin
