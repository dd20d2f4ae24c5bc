"""A detector of memorized samples: fitted once on samples whose nearest training images are known, it needs none afterwards.

It reads the record of a run: how fast each sample moved (``||v||``) and how fast its velocity turned (``||dv/dt||``). Not from
the paper; how well it tells memorized samples, and on which models, is measured in ``benchmarks/science/detector.py``.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ..files import write_whole
from ..flow_coordinates import ON_GRID

if TYPE_CHECKING:
    from ..kpe.trace import KPETrace

FORMAT = "diffusers-kts/detector"
NUM_TIMES = 32  # flow times of the fixed grid
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse regularization, the best of which is taken
FOLDS = 5
FEWEST = 25  # samples of either kind
FALSE_POSITIVES = 0.01
SAME_SIGMA = 1e-5
Z = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Score:
    """How well predictions tell memorized samples.

    Attributes:
        auc, low, high: area under the ROC curve, and its 95 % interval.
        tpr_at_1_percent: share of memorized samples found where 1 % of the others are flagged.
        auc_within_groups: the area within classes or prompts; None where none has both kinds.
        brier: Brier score of the probabilities.
    """

    auc: float
    low: float
    high: float
    tpr_at_1_percent: float
    auc_within_groups: float | None
    brier: float


@dataclass(frozen=True, eq=False)
class MemorizationDetector:
    """Probability that a sample repeats a training image, from the record of its run.

    Attributes:
        times: (G,) flow times at which the record is read.
        mean, scale, weights: (2 G,) of the standardized features, and their weights.
        bias: of the logistic function.
        sigmas: (N + 1,) noise levels of the runs it was fitted to.
        about: what it was fitted to: "d", "scheduler" and its settings, and what the caller added (model, guidance_scale).
        scores: cross-validated, "samples" (folds of samples, each with its own noise) and "groups" (folds of whole classes or
            prompts), as dictionaries of `Score`.
    """

    times: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    weights: torch.Tensor
    bias: float
    sigmas: torch.Tensor
    about: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        trace: "KPETrace",
        memorized: torch.Tensor,
        groups: Sequence[Any],
        about: Mapping[str, Any] | None = None,
        end: float = 1.0,
    ) -> "MemorizationDetector":
        """Fit a regularized logistic regression and score it by cross-validation.

        Args:
            trace (`KPETrace`): of B samples, with the turn.
            memorized (`torch.Tensor`, (B,)): whether each repeats a training image, as `measure_memorization` finds.
            groups (`Sequence`): class or prompt of each sample.
            about (`Mapping`, *optional*): what else to remember and compare, such as the model and its guidance.
            end (`float`, defaults to 1): flow time up to which the record is read; below 1 it decides while sampling.

        Raises:
            ValueError: too few samples of a kind, a record without turn or that begins late, sizes that do not match.
        """
        hits = memorized.bool().numpy()
        if len(hits) != len(trace) or len(groups) != len(trace):
            raise ValueError(f"there are {len(trace)} records, {len(hits)} labels and {len(groups)} groups; give one of each.")
        if min(hits.sum(), (~hits).sum()) < FEWEST:
            raise ValueError(
                f"{hits.sum()} of {len(hits)} samples are memorized; a detector needs at least {FEWEST} of either kind. Draw "
                "more."
            )
        if trace.late_start:
            raise ValueError(f"the record begins at t = {trace.t_start:.3g}; fit a detector to runs from noise.")
        times = torch.linspace(0, end, NUM_TIMES, dtype=torch.float64)
        x = _features(trace, times)
        usable = np.isfinite(x).all(1)
        x, hits, names = x[usable], hits[usable], np.array([str(group) for group in np.array(groups, object)[usable]])
        model = max((_regression(c) for c in STRENGTHS), key=lambda m: roc_auc_score(hits, _held_out(m, x, hits, None)))
        scores = {"samples": _score(_held_out(model, x, hits, None), hits, names)}
        if len(set(names)) >= FOLDS:
            scores["groups"] = _score(_held_out(model, x, hits, names), hits, names)
        scaler, regression = (step for _, step in model.fit(x, hits).steps)
        mean, scale, weights = (torch.from_numpy(a) for a in (scaler.mean_, scaler.scale_, regression.coef_[0]))
        found = {name: vars(score) for name, score in scores.items()}
        known, bias = _about(trace) | dict(about or {}), float(regression.intercept_[0])
        return cls(times, mean, scale, weights, bias, trace.sigmas.clone(), known, found)

    def probability(self, trace: "KPETrace", **about: Any) -> torch.Tensor:
        """(B,) probability of each sample; NaN where its velocity was not finite.

        Args:
            trace (`KPETrace`): of a run as those it was fitted to, with the turn.
            about: compared with what was given to `fit`, such as the model and its guidance.

        Raises:
            ValueError: the run differs from those it was fitted to; the difference is named.
        """
        self.check(trace, **about)
        x = (torch.from_numpy(_features(trace, self.times)) - self.mean) / self.scale
        return torch.sigmoid(x @ self.weights + self.bias)

    def check(self, trace: "KPETrace", **about: Any) -> None:
        """Raises ValueError, with the difference, if the run is not like those it was fitted to."""
        for name, value in (_about(trace) | about).items():
            if (fitted := self.about.get(name)) != value:
                raise ValueError(f"the detector was fitted with {name} {fitted!r}, this run has {value!r}; fit one for it.")
        if trace.sigmas.shape != self.sigmas.shape or not torch.allclose(trace.sigmas, self.sigmas, atol=SAME_SIGMA, rtol=0):
            raise ValueError(
                f"the detector was fitted to a schedule of {len(self.sigmas) - 1} steps from {self.sigmas[0]:.4g} to "
                f"{self.sigmas[-2]:.4g}, this run has {trace.num_steps} from {trace.sigmas[0]:.4g} to {trace.sigmas[-2]:.4g}; "
                "draw with the same steps, or fit one for it."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write it as safetensors with its JSON inside; an existing file is replaced once the new one is whole."""
        from safetensors.torch import save

        tensors = {name: getattr(self, name).contiguous() for name in ("times", "mean", "scale", "weights", "sigmas")}
        about = json.dumps({"bias": self.bias, "about": self.about, "scores": self.scores})
        write_whole(path, save(tensors, metadata={"format": FORMAT, "version": "1", "detector": about}))

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
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}")
            rest = json.loads(metadata["detector"])
            found = cls(**tensors, bias=float(rest["bias"]), about=dict(rest["about"]), scores=dict(rest["scores"]))
            if not len(found.mean) == len(found.scale) == len(found.weights) == 2 * len(found.times) or found.sigmas.ndim != 1:
                raise ValueError("its tensors do not belong together")
            return found
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged or no detector ({error}); give the detector.safetensors of kts audit."
            ) from error


def _about(trace: "KPETrace") -> dict[str, Any]:
    return {"d": trace.d} | {name: trace.settings[name] for name in sorted(trace.settings)}


def _features(trace: "KPETrace", times: torch.Tensor) -> np.ndarray:
    """(B, 2 G): log speed and log rate of turning per dimension at the ``times``, linear between evaluations. Nothing after
    the last of the times is read."""
    if trace.turn is None:
        raise ValueError("the turn was not recorded; set record_turn = True on the scheduler or the monitored pipeline.")
    tiny = torch.finfo(torch.float32).tiny
    n = int((trace.t[:-1] <= times[-1] + ON_GRID).sum())
    t, d = trace.t[:n].double(), trace.d
    speed = (trace.power[:, :n].double() / d).clamp(min=tiny).log() / 2
    rate = (trace.turn[:, 1:n].double() / t.diff().clamp(min=tiny) / d**0.5).clamp(min=tiny).log()
    parts = [_interpolated(times, t, speed), _interpolated(times, (t[1:] + t[:-1]) / 2, rate)]
    return torch.cat(parts, 1).numpy()


def _interpolated(at: torch.Tensor, t: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(B, G) from (B, N) at (N,) ascending times, constant outside."""
    right = torch.searchsorted(t, at).clamp(1, len(t) - 1)
    share = ((at - t[right - 1]) / (t[right] - t[right - 1])).clamp(0, 1)
    return torch.lerp(values[:, right - 1], values[:, right], share.expand(len(values), -1))


def _regression(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def _held_out(model: Pipeline, x: np.ndarray, hits: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """(B,) probabilities, each by a model that has not seen the sample, or with ``groups`` none of its group."""
    split = StratifiedKFold(FOLDS, shuffle=True, random_state=0) if groups is None else GroupKFold(FOLDS)
    found = np.empty(len(hits))
    for seen, unseen in split.split(x, hits, groups):
        if hits[seen].any() and not hits[seen].all():
            found[unseen] = model.fit(x[seen], hits[seen]).predict_proba(x[unseen])[:, 1]
        else:
            found[unseen] = hits[seen].mean()
    return found


def score(predicted: np.ndarray, hits: np.ndarray, groups: Sequence[Any]) -> Score:
    """How well numbers (B,) tell the samples that are memorized; for the Brier score they are taken as probabilities."""
    return _score(np.asarray(predicted, float), np.asarray(hits, bool), np.array([str(group) for group in groups]))


def _score(predicted: np.ndarray, hits: np.ndarray, groups: np.ndarray) -> Score:
    limit = np.quantile(predicted[~hits], 1 - FALSE_POSITIVES, method="higher")
    within, weights = [], []
    for name in set(groups):
        own = groups == name
        if hits[own].any() and not hits[own].all():
            within.append(roc_auc_score(hits[own], predicted[own]))
            weights.append(hits[own].sum() * (~hits[own]).sum())
    inside = float(np.average(within, weights=weights)) if within else None
    brier = float(brier_score_loss(hits, np.clip(predicted, 0, 1)))
    auc = float(roc_auc_score(hits, predicted))
    low, high = auc_interval(auc, int(hits.sum()), int((~hits).sum()))
    return Score(auc, low, high, float((predicted[hits] > limit).mean()), inside, brier)


def auc_error(auc: float, m: int, n: int) -> float:
    """Standard error of the area under the ROC curve of ``m`` samples of one kind and ``n`` of the other, Hanley and McNeil
    (1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (q1 - auc * auc) + (n - 1) * (q2 - auc * auc)) / (m * n)
    return math.sqrt(max(0.0, variance))


def auc_interval(auc: float, m: int, n: int) -> tuple[float, float]:
    """95 % interval of the area, with `auc_error`."""
    reach = Z * auc_error(auc, m, n)
    return max(0.0, auc - reach), min(1.0, auc + reach)
