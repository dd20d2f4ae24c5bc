"""KPETrace: the kinetic path energy (KPE) that a run of the sampler has measured.

``E = 1/2 sum_i w_i ||v_i||^2`` per sample: after Euler steps ``w_i = |sigma_{i+1} - sigma_i|``, the left Riemann sum that
belongs to them (arXiv 2602.07928); after steps of higher order the trapezoidal rule, see `quadrature_weights`. Units: squared
latent units. Sums run over every dimension but the first.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..files import write_whole
from ..flow_coordinates import ON_GRID

FORMAT = "diffusers-kts/kpe"
FORMAT_VERSION = "2"
READABLE = ("1", FORMAT_VERSION)  # version 1 has no checksum and no `ends`
SUFFIX = ".safetensors"
QUADRATURES = ("left", "trapezoid")
DECIDED, SETTLED = 0.5, 0.9  # flow times: before the one `settling` looks for movement, from the other on for rest
LATE_START = 0.02  # a record that begins after this flow time does not hold the launch (img2img, inpainting, custom sigmas)
GUIDANCE = ("guidance_scale", "conditional_power", "guidance_norm")
PER_STEP = ("turn", *GUIDANCE)
PER_SAMPLE = ("power", *PER_STEP, "displacement", "memorization_probability")
TENSORS = ("sigmas", "t", "gains", "ends", *PER_SAMPLE)
ABOUT: dict[str, Any] = {"tau_split": (int, float), "d": int, "stream": str, "run": int, "settings": dict, "quadrature": str}


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

    Examples:
        >>> power = torch.tensor([[4.0, 4.0]])  # one sample that moves at speed 2, in two steps
        >>> sigmas = torch.tensor([1.0, 0.5, 0.0])
        >>> trace = KPETrace(power, sigmas, 1 - sigmas, gains=torch.ones(2), tau_split=0.6, d=2)
        >>> trace.path_energy.total, trace.per_dim
        (tensor([2.]), tensor([1.]))

    Attributes:
        power: (B, N) squared speed ``||v_i||^2`` of the network's field, per sample and network evaluation.
        sigmas: (N + 1,) noise levels at the evaluations, and where the last step ended.
        t: (N + 1,) flow times of ``sigmas``, 0 noise to 1 data.
        gains: (N,) or (B, N), the ``eta`` that scaled each displacement; ones without shaping.
        tau_split: flow time that divides early from late.
        d: latent dimensions per sample.
        stream: which scheduler of the pipeline was measured ("scheduler", "audio_scheduler", "scheduler copy 1").
        run: number of the run within the pipeline call, from 0; a run begins at `set_timesteps`.
        settings: scheduler class and shaping settings.
        quadrature: "left" (Euler) or "trapezoid" (Heun, multistep).
        turn: (B, N) ``||v_i - v_{i-1}||``, 0 at the first evaluation; recorded on request, see `KPERecorder`.
        displacement: (B,) net displacement ``||sum_i eta_i dt_i v_i||`` of the sampler's own steps, whatever a pipeline pastes
            into the latents between them; recorded in monitored calls, otherwise on request, see `KPERecorder`. Units: latent
            units, in flow coordinates.
        ends: (N,) noise level where each step ended, if the run went back (Restart sampling, RePaint) and these are not the
            levels of the next evaluations; otherwise None.
        memorization_probability: (B,) as a detector judged the samples during the run, see `KTSDetectorFlowMatchScheduler`.
        guidance_scale: (B, N) the ``s`` of guidance, ``v = v_u + s (v_c - v_u)``, as found from the network's predictions; 1
            where it gave one. Any two that combine so are taken: conditional and unconditional (classifier-free guidance), or
            plain and perturbed (perturbed attention without it). Recorded on request, see
            `KPEMonitorPipeline.record_guidance`, as are the next two; None where no step had two predictions (no guidance, or
            a distilled one, which the network itself makes), and, with a warning, where the velocity is no such combination.
        conditional_power: (B, N) ``||v_c||^2`` of the conditional prediction.
        guidance_norm: (B, N) ``||v_c - v_u||``, 0 where the network gave one prediction. Of predicted noise, which differs by
            ``t (v_c - v_u)``, the mean over the steps is the memorization score of Wen et al. (arXiv 2407.21720).

    Raises:
        ValueError: the shapes do not belong together.
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
    ends: torch.Tensor | None = None
    displacement: torch.Tensor | None = None
    memorization_probability: torch.Tensor | None = None
    guidance_scale: torch.Tensor | None = None
    conditional_power: torch.Tensor | None = None
    guidance_norm: torch.Tensor | None = None

    def __post_init__(self) -> None:
        steps = self.power.shape[-1]
        if self.power.ndim != 2 or len(self.sigmas) != steps + 1 or len(self.t) != steps + 1 or self.gains.shape[-1] != steps:
            raise ValueError(
                f"power is {tuple(self.power.shape)}, sigmas {tuple(self.sigmas.shape)}, t {tuple(self.t.shape)}, gains "
                f"{tuple(self.gains.shape)}; give (B, N), (N + 1,), (N + 1,) and (N,) or (B, N)."
            )
        for name in PER_STEP:
            if (value := getattr(self, name)) is not None and value.shape != self.power.shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, power {tuple(self.power.shape)}; give the same shape.")
        for name in ("displacement", "memorization_probability"):
            if (value := getattr(self, name)) is not None and value.shape != self.power.shape[:1]:
                raise ValueError(f"{name} is {tuple(value.shape)}; give one number for each of {len(self)} samples.")
        if self.ends is not None and len(self.ends) != steps:
            raise ValueError(f"ends is {tuple(self.ends.shape)}; give one level for each of the {steps} steps.")
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
        return quadrature_weights(self.sigmas, self.quadrature, self.ends)

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
    def conditional_energy(self) -> Energy:
        """Energy of the conditional prediction alone along the path that was guided.

        With `guidance_energy` it makes the `model_energy`, but for the cross term ``(s - 1) sum_i w_i <v_c, v_c - v_u>``.

        Raises:
            ValueError: the guidance was not recorded.
        """
        return self._energy(self._recorded_guidance()[1])

    @property
    def guidance_energy(self) -> Energy:
        """Energy of what guidance adds to the conditional prediction, ``(s - 1) (v_c - v_u)``; 0 for a scale of 1.

        Raises:
            ValueError: as `conditional_energy`.
        """
        scale, _, norm = self._recorded_guidance()
        return self._energy(((scale - 1) * norm) ** 2)

    def _recorded_guidance(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.guidance_scale is None or self.conditional_power is None or self.guidance_norm is None:
            raise ValueError(
                "the guidance was not recorded; set record_guidance = True on the monitored pipeline, and guide with a scale "
                "above 1: guidance_scale of KPETrace says what is recorded."
            )
        return self.guidance_scale, self.conditional_power, self.guidance_norm

    @property
    def per_dim(self) -> torch.Tensor:
        """(B,) total path energy per latent dimension."""
        return self.path_energy.total / self.d

    @property
    def excess(self) -> torch.Tensor:
        """(B,) path energy beyond that of the straight, even way to the same place, ``E - ||displacement||^2 / (2 T)``, where
        ``T`` is the flow time of all steps: never negative, but for rounding (Cauchy-Schwarz), and 0 on a constant field.

        ``E`` is the left sum here whatever the `quadrature`, since the displacement is one: for solvers of second order it
        differs from `path_energy`. Tokens whose own steps cover less time than the schedule's count what they rest, too.
        Not from the paper.

        Raises:
            ValueError: the displacement was not recorded.
        """
        if self.displacement is None:
            raise ValueError(
                "the displacement was not recorded; measure with KPECallback(pipe) or KPEMonitorPipeline, or set "
                "record_displacement = True on the scheduler before the run."
            )
        left = self.with_quadrature("left")
        power, covered = left.path_power.double(), left.weights
        straight = self.displacement.double() ** 2 / covered.sum().clamp(min=torch.finfo(torch.float64).tiny)
        return ((power @ covered - straight) / 2).to(self.power.dtype)

    @property
    def excess_per_dim(self) -> torch.Tensor:
        """(B,) `excess` per latent dimension."""
        return self.excess / self.d

    @property
    def flagged(self) -> torch.Tensor:
        """(B,) bool, whether the probability that a sample repeats a training image reached the threshold of the run.

        Raises:
            ValueError: no detector judged the samples.
        """
        if self.memorization_probability is None:
            raise ValueError("no detector judged these samples; draw with KTSDetectorFlowMatchScheduler.")
        return self.memorization_probability >= self.settings["detector_threshold"]

    def with_quadrature(self, quadrature: str) -> "KPETrace":
        """The same record, its powers added up by another rule: "left", as the reference code does after Heun's steps too, or
        "trapezoid".

        Raises:
            ValueError: the rule is not known.
        """
        return replace(self, quadrature=quadrature)

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
        was decided early and then rests, as memorized ones are; NaN where one of the two was not recorded (touchdown).

        Not from the paper; how well it tells memorized samples is measured in ``benchmarks/science/memorization_score.py``.

        Raises:
            ValueError: as `estimate_change`.
        """
        early, late = self.estimate_change(0.0, DECIDED), self.estimate_change(SETTLED)
        return torch.where((early > 0) & (late > 0), (early / late).log(), torch.nan)

    @property
    def turning(self) -> torch.Tensor:
        """(B, N) `turning_so_far`, the quantity that `KTSAdaptiveFlowMatchScheduler` uses.

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
        energies = {"path_energy": self.path_energy, "model_energy": self.model_energy}
        if self.guidance_norm is not None:
            energies |= {"conditional_energy": self.conditional_energy, "guidance_energy": self.guidance_energy}
        for name, energy in energies.items():
            for part in ("total", "early", "late"):
                columns[f"{name}_{part}"] = getattr(energy, part).tolist()
        columns["per_dim"] = self.per_dim.tolist()
        if self.guidance_norm is not None:
            columns["mean_guidance_norm"] = self.guidance_norm.mean(1).tolist()
        if self.displacement is not None:
            columns |= {"displacement": self.displacement.tolist(), "excess": self.excess.tolist()}
        if self.turn is not None:
            columns["settling"] = self.settling.tolist()
        if self.memorization_probability is not None:
            columns |= {"memorization_probability": self.memorization_probability.tolist(), "flagged": self.flagged.tolist()}
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
        columns |= {name: value for name in GUIDANCE if (value := getattr(self, name)) is not None}
        return pd.DataFrame({name: torch.broadcast_to(value, (b, n)).flatten().numpy() for name, value in columns.items()})

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Power against flow time, median and 10-90 % band, with ``tau_split`` and ``eta``. Returns the matplotlib axes."""
        from .plot import plot_power

        return plot_power({label or self.settings.get("scheduler", "run"): self}, ax=ax)

    def save(self, path: str | os.PathLike) -> None:
        """Write the record as safetensors with metadata and a checksum; an existing file is replaced only once the new one is
        whole.

        Raises:
            ValueError: the name has another ending than ``.safetensors``.
            FileNotFoundError: the folder does not exist.
        """
        from safetensors.torch import save

        if Path(path).suffix not in ("", SUFFIX):
            raise ValueError(
                f"{path} ends in {Path(path).suffix!r}, but a record is saved as {SUFFIX}; give such a name, or write a table "
                "with trace.to_pandas().to_csv(...)."
            )
        about = json.dumps({name: getattr(self, name) for name in ABOUT})
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors = {name: value.contiguous() for name, value in tensors.items() if value is not None}
        metadata = {"format": FORMAT, "version": FORMAT_VERSION, "trace": about, "sha256": _checksum(tensors, about)}
        write_whole(path, save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "KPETrace":
        """Read what `save` wrote, in this release or an earlier one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, is not an energy record, or is from a newer release.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; give a file written by KPETrace.save.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or not safetensors ({error}); give a file written by KPETrace.save."
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not an energy record (format {metadata.get('format')!r}, not {FORMAT!r}).")
        if metadata.get("version") not in READABLE:
            raise ValueError(
                f"{path} has format version {metadata.get('version')}; this release reads {', '.join(READABLE)}: upgrade."
            )
        try:
            text = metadata["trace"]
            if metadata["version"] != "1" and metadata["sha256"] != _checksum(tensors, text):
                raise ValueError("its checksum is another one")
            about = json.loads(text)
            for name, kind in ABOUT.items():
                if not isinstance(about[name], kind) or isinstance(about[name], bool):
                    raise TypeError(f"{name} is {about[name]!r}")
            return cls(**tensors, **about)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is a damaged energy record ({error}); write it again with KPETrace.save.") from error

    def take(self, rows: Sequence[int] | torch.Tensor) -> "KPETrace":
        """The record of some of the samples, in this order."""
        taken = {name: value[rows] for name in PER_SAMPLE if (value := getattr(self, name)) is not None}
        return replace(self, gains=self.gains if self.gains.ndim == 1 else self.gains[rows], **taken)

    @classmethod
    def cat(cls, traces: "list[KPETrace]") -> "KPETrace":
        """Records of several batches of the same schedule, as one."""
        if not traces:
            raise ValueError("there is no trace to join; give at least one.")
        first = traces[0]
        for other in traces[1:]:
            same = first.d == other.d and first.settings == other.settings
            same &= all((getattr(first, name) is None) == (getattr(other, name) is None) for name in PER_SAMPLE)
            if not same or not torch.equal(first.sigmas, other.sigmas) or not _equal(first.ends, other.ends):
                raise ValueError("the traces differ in schedule, size or settings; join records of the same sampler only.")
        gains = first.gains
        if gains.ndim == 2:
            gains = torch.cat([trace.gains for trace in traces])
        rows = {name: [getattr(trace, name) for trace in traces] for name in PER_SAMPLE}
        joined: dict[str, Any] = {name: torch.cat(parts) for name, parts in rows.items() if parts[0] is not None}
        return replace(first, gains=gains, **joined)


def quadrature_weights(sigmas: torch.Tensor, quadrature: str = "left", ends: torch.Tensor | None = None) -> torch.Tensor:
    """Flow time that each evaluation stands for.

    It is the step that the evaluation begins ("left", first order), or the mean of the intervals on its two sides
    ("trapezoid", second order). No evaluation ends the last step, so that one counts whole; likewise the last step before a
    run goes back. Of the two evaluations that Heun makes at a noise level, the one before ends a step and the other begins
    one: each has an empty interval on one side.

    Args:
        sigmas: (N + 1,) levels of the evaluations and of the end.
        quadrature: "left" or "trapezoid".
        ends: (N,) where each step ended, if not at the level of the next evaluation.

    Returns:
        (N,) float64.
    """
    ends = sigmas[1:] if ends is None else ends
    dt = (ends.double() - sigmas[:-1].double()).abs()
    if quadrature == "left":
        return dt
    follows = torch.cat([torch.zeros(1, dtype=torch.bool), ends[:-1] == sigmas[1:-1]])  # the step before ends here
    is_followed = torch.cat([follows[1:], torch.zeros(1, dtype=torch.bool)])
    ended = torch.where(follows, dt.roll(1), 0.0)
    begun = torch.where(is_followed, dt, 2 * dt)
    return (ended + begun) / 2


def turning_so_far(power: torch.Tensor, turn: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(B, N) how far the data estimate has moved up to each evaluation, over the speed there,
    ``sum_{j<=i} (1 - t_j) ||v_j - v_{j-1}|| / ||v_i||``: no unit, and known while sampling. High where a sample is decided
    early, as memorized ones are. Not from the paper; how well it tells them is measured in ``benchmarks/science/adaptive.py``.

    Args:
        power: (B, N) of a record, see `KPETrace`.
        turn: (B, N), likewise.
        t: (N,) flow times of the evaluations.
    """
    return (turn * (1 - t)).cumsum(1) / power.sqrt()


def _checksum(tensors: Mapping[str, torch.Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
