"""A detector of memorized samples: fitted once on samples whose nearest training images are known, it needs none afterwards.

It reads the record of a run: how fast each sample moved (``||v||``) and how fast its velocity turned (``||dv/dt||``). Not from
the paper; how well it tells memorized samples, and on which models, is measured in ``benchmarks/science/detector.py``.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import write_whole
from ..flow_coordinates import ON_GRID

if TYPE_CHECKING:
    from ..kpe.trace import KPETrace

FORMAT = "diffusers-kts/detector"
VERSION = "2"
NUM_TIMES = 64  # flow times at which the record is read, from 0 to the end, when a detector is fitted
FEWEST_STEPS = 3  # evaluations that a part of the record must have
SAME_TIME = 1e-5
TENSORS = ("ends", "weights", "bias", "times")
# settings that change a path, with their values in plain sampling; the shapes matter where there is a launch or a landing
PLAIN = {"alpha_0": 0, "beta_0": 0, "touchdown": None, "gain": None, "energy_budget": None, "turning": None}
SHAPES = ("tau_split", "k", "early_schedule", "late_schedule")


@dataclass(frozen=True, eq=False)
class MemorizationDetector:
    """Probability that a sample repeats a training image, from the record of its run; see `fit_detector`.

    Attributes:
        ends: (H,) flow times up to which the record may be read, rising; the last is 1, the whole record.
        weights: (H, 2 G) of log speed and log rate of turning per dimension at G even flow times from 0 to the end.
        bias: (H,) of the logistic function.
        times: (N + 1,) flow times of the runs it was fitted to.
        about: what it was fitted to: "d", the quadrature, shaping settings, and what the caller added (model,
            guidance_scale).
        scores: cross-validated, as dictionaries of `Score`: "samples" (folds of samples, each with its own noise), "groups"
            (folds of whole classes or prompts), and "samples, up to t = 0.6" for each of the earlier ends.
    """

    ends: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor
    times: torch.Tensor
    about: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = [tensor.shape for tensor in (self.ends, self.bias, self.weights)]
        heads = self.ends.shape[0] if self.ends.ndim == 1 else 0
        if (
            not heads
            or not self.num_times
            or shapes != [(heads,), (heads,), (heads, 2 * self.num_times)]
            or self.times.ndim != 1
        ):
            raise ValueError(f"its tensors do not belong together (ends, bias, weights: {', '.join(map(str, shapes))})")
        if not all(getattr(self, name).isfinite().all() for name in TENSORS):
            raise ValueError("it holds numbers that are not finite")

    @property
    def num_times(self) -> int:
        """G, at how many flow times it reads the record."""
        return self.weights.shape[1] // 2 if self.weights.ndim == 2 else 0

    def probability(self, trace: "KPETrace", end: float = 1.0, **about: Any) -> torch.Tensor:
        """(B,) probability of each sample; NaN where its velocity was not finite.

        Args:
            trace (`KPETrace`): of a run as those it was fitted to, with the turn.
            end (`float`, defaults to 1): one of `ends`; nothing later is read.
            about: compared with what was given to `fit_detector`, such as the model and its guidance.

        Raises:
            ValueError: the run differs from those it was fitted to; the difference is named.
        """
        if trace.turn is None:
            raise ValueError("the turn was not recorded; set record_turn = True on the scheduler or the monitored pipeline.")
        self.check(**run_settings(trace), **about)
        self.check_times(trace.t)
        weights, bias = self.linear(end)
        n = len(weights)
        return probability(trace.power[:, :n], trace.turn[:, :n], weights, bias)

    def linear(self, end: float = 1.0) -> tuple[torch.Tensor, float]:
        """The detector on its own schedule, where the logit is a sum over evaluations: (n, 2) weights of `observed`, for those
        up to ``end``, and the bias.

        Raises:
            ValueError: it was not fitted up to this time.
        """
        head = (self.ends - end).abs().argmin()
        if abs(float(self.ends[head]) - end) > ON_GRID:
            *others, last = (f"{e:g}" for e in self.ends.tolist())
            known = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(
                f"the detector reads the record up to t = {known}, not {end:g}; choose one of them, or fit another."
            )
        matrix, offset = design(self.times, self.about["d"], end, self.num_times)
        weights = self.weights[head].double()
        return (weights @ matrix).reshape(-1, 2), float(self.bias[head].double() + weights @ offset)

    def check(self, **about: Any) -> None:
        """Raises ValueError, with the difference, if what is given here is not as in the runs it was fitted to."""
        for name, value in about.items():
            if (fitted := self.about.get(name)) != value:
                raise ValueError(f"the detector was fitted with {name} {fitted!r}, this run has {value!r}; fit one for it.")

    def check_times(self, times: torch.Tensor) -> None:
        """Raises ValueError, with the difference, if these (N + 1,) flow times are not those of the runs it was fitted to."""
        own, times = self.times.double(), torch.as_tensor(times, dtype=torch.float64)
        if own.shape != times.shape or not torch.allclose(own, times, atol=SAME_TIME, rtol=0):
            raise ValueError(
                f"the detector was fitted to a schedule of {_described(own)}, this run has {_described(times)}; draw with the "
                "same steps, or fit one for it."
            )

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides its probabilities."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, without the scores, as a scheduler's configuration keeps them; `from_dict` is the way
        back."""
        tensors = {name: getattr(self, name).tolist() for name in TENSORS}
        return tensors | {"about": dict(self.about)}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> "MemorizationDetector":
        """Raises ValueError for what `to_dict` did not write."""
        try:
            tensors: Any = {name: torch.tensor(numbers[name], dtype=torch.float64) for name in TENSORS}
            return cls(**tensors, about=_about(numbers["about"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"this is no detector ({error}); give the detector.safetensors of kts audit.") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write it as safetensors with its JSON inside; an existing file is replaced once the new one is whole."""
        from safetensors.torch import save

        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        about = json.dumps({"about": self.about, "scores": self.scores})
        write_whole(path, save(tensors, metadata={"format": FORMAT, "version": VERSION, "detector": about}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "MemorizationDetector":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or something else.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; give the detector.safetensors of kts audit.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
                raise ValueError(f"its format is {metadata.get('format')!r}, version {metadata.get('version')!r}")
            rest = json.loads(metadata["detector"])
            return cls(**tensors, about=_about(rest["about"]), scores=dict(rest["scores"]))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged or no detector ({error}); give the detector.safetensors of kts audit."
            ) from error


def observed(power: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """(B, n, 2) what is read of a record (B, n): log of ``||v||`` and of ``||v_i - v_{i-1}||``. In float64 where the device
    has it."""
    if power.device.type != "mps":
        power, turn = power.double(), turn.double()
    tiny = torch.finfo(torch.float32).tiny
    return torch.stack([power.clamp(min=tiny).log() / 2, turn.clamp(min=tiny).log()], -1)


def probability(power: torch.Tensor, turn: torch.Tensor, weights: torch.Tensor, bias: Any) -> torch.Tensor:
    """(B,) probability of samples with this ``power`` and ``turn`` (B, n), by what `MemorizationDetector.linear` gives; NaN
    where one is not finite."""
    logit = (observed(power, turn) * weights).sum((1, 2)) + bias
    return torch.where(logit.isfinite(), logit.sigmoid(), torch.nan)


def design(times: torch.Tensor, d: int, end: float, num_times: int = NUM_TIMES) -> tuple[torch.Tensor, torch.Tensor]:
    """The features as a linear function of `observed`, flat: a (2 G, 2 n) matrix and a (2 G,) offset.

    Features are log speed and log rate of turning per dimension at ``num_times`` times from 0 to ``end``, linear between
    evaluations, where the rate stands between two of them, and constant outside. Only the n evaluations up to ``end`` are
    read.

    Raises:
        ValueError: they are too few.
    """
    t = times[:-1].double()
    t = t[t <= end + ON_GRID]
    n = len(t)
    if n < FEWEST_STEPS:
        raise ValueError(f"the schedule has {n} steps up to t = {end:g}; a detector needs at least {FEWEST_STEPS} there.")
    at = torch.linspace(0, end, num_times, dtype=torch.float64)
    speed, rate = _interpolation(at, t), _interpolation(at, (t[1:] + t[:-1]) / 2)
    matrix = torch.zeros(2, num_times, n, 2, dtype=torch.float64)
    matrix[0, :, :, 0], matrix[1, :, 1:, 1] = speed, rate
    dt = t.diff().clamp(min=torch.finfo(torch.float32).tiny)
    log_d = torch.tensor(float(d), dtype=torch.float64).log() / 2
    offset = -log_d - torch.stack([torch.zeros(num_times, dtype=torch.float64), rate @ dt.log()])
    return matrix.reshape(2 * num_times, 2 * n), offset.flatten()


def _interpolation(at: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(G, n) by which values at (n,) ascending times become values at (G,) times."""
    right = torch.searchsorted(t, at).clamp(1, len(t) - 1)[:, None]
    share = ((at[:, None] - t[right - 1]) / (t[right] - t[right - 1])).clamp(0, 1)
    return torch.zeros(len(at), len(t), dtype=t.dtype).scatter(1, right - 1, 1 - share).scatter(1, right, share)


def run_settings(trace: "KPETrace") -> dict[str, Any]:
    """What decides the path of a record's samples, next to the model, its guidance and the schedule: dimensions, the order of
    the solver, shaping, what a detector did. Plain Euler steps are the same by whichever scheduler."""
    acted = {"on_memorized": trace.settings.get("on_memorized", "flag")}
    return {"d": trace.d, "quadrature": trace.quadrature} | acted | path_settings(trace.settings)


def path_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a scheduler's settings, those that change a path."""
    found = {name: settings.get(name, value) for name, value in PLAIN.items()}
    shaped = found["alpha_0"] or found["beta_0"]
    return found | ({name: settings.get(name) for name in SHAPES} if shaped else {})


def _about(found: Any) -> dict[str, Any]:
    """Raises ValueError, TypeError or KeyError for what `fit_detector` did not find."""
    about = dict(found)
    if not isinstance(about["d"], int) or about["d"] < 1:
        raise ValueError(f"d is {about['d']!r:.60}")
    return about


def _described(times: torch.Tensor) -> str:
    return f"{len(times) - 1} steps from t = {float(times[0]):.4g} to {float(times[-2]):.4g}" if len(times) > 1 else "no steps"
