"""Fitting a `MemorizationDetector` to records of samples whose nearest training images are known, and its scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from .detector import FEWEST_STEPS, MemorizationDetector, design, observed, run_settings

if TYPE_CHECKING:
    from ..kpe.trace import KPETrace

EARLIER = (0.4, 0.5, 0.6, 0.7, 0.8)  # flow times at which one may act on what is known so far
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse regularization, the best of which is taken
FOLDS = 5
FEWEST = 25  # samples of either kind
FALSE_POSITIVES = 0.01
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


def fit_detector(
    trace: "KPETrace", memorized: torch.Tensor, groups: Sequence[Any], about: Mapping[str, Any] | None = None
) -> MemorizationDetector:
    """Fit regularized logistic regressions, to whole records and to what is known earlier, and score them by
    cross-validation.

    Args:
        trace (`KPETrace`): of B samples, with the turn.
        memorized (`torch.Tensor`, (B,)): whether each repeats a training image, as `measure_memorization` finds.
        groups (`Sequence`): class or prompt of each sample.
        about (`Mapping`, *optional*): what else to remember and compare, such as the model and its guidance.

    Raises:
        ValueError: too few samples of a kind or steps, a record without turn or that begins late, sizes that do not match.
    """
    hits = memorized.bool().numpy()
    if len(hits) != len(trace) or len(groups) != len(trace):
        raise ValueError(f"there are {len(trace)} records, {len(hits)} labels and {len(groups)} groups; give one of each.")
    if min(hits.sum(), (~hits).sum()) < FEWEST:
        raise ValueError(
            f"{hits.sum()} of {len(hits)} samples are memorized; a detector needs at least {FEWEST} of either kind. Draw more."
        )
    if trace.turn is None:
        raise ValueError("the turn was not recorded; set record_turn = True on the scheduler or the monitored pipeline.")
    if trace.late_start:
        raise ValueError(f"the record begins at t = {trace.t_start:.3g}; fit a detector to runs from noise.")
    seen = observed(trace.power, trace.turn)
    usable = seen.flatten(1).isfinite().all(1).numpy()
    seen, hits, names = seen[usable], hits[usable], np.array([str(group) for group in np.array(groups, object)[usable]])
    t = trace.t[:-1]
    ends = [end for end in EARLIER if FEWEST_STEPS <= (t <= end).sum() < len(t)] + [1.0]
    scores: dict[str, Any] = {}
    weights, bias = [], []
    for end in reversed(ends):
        matrix, offset = design(trace.t, trace.d, end)
        x = (seen.flatten(1)[:, : matrix.shape[1]] @ matrix.T + offset).numpy()
        trials = [(model, _held_out(model, x, hits, None)) for model in map(_regression, STRENGTHS)]
        model, predicted = max(trials, key=lambda trial: roc_auc_score(hits, trial[1]))
        scores["samples" if end == 1 else f"samples, up to t = {end:g}"] = vars(_score(predicted, hits, names))
        if end == 1 and len(set(names)) >= FOLDS:
            scores["groups"] = vars(_score(_held_out(model, x, hits, names), hits, names))
        scaler, regression = (step for _, step in model.fit(x, hits).steps)
        weights.append(torch.from_numpy(regression.coef_[0] / scaler.scale_))
        bias.append(float(regression.intercept_[0] - scaler.mean_ @ weights[-1].numpy()))
    known = run_settings(trace) | dict(about or {})
    heads = torch.stack(weights[::-1]), torch.tensor(bias[::-1], dtype=torch.float64)
    return MemorizationDetector(torch.tensor(ends, dtype=torch.float64), *heads, trace.t.double(), known, scores)


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
