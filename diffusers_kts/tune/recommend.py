"""Which setting may be recommended, and whether it is.

**The rule.** A setting is worth recommending if it costs nothing in any objective, except for the tolerance in the first, and
gains in one. Of the tuned settings that pass by their values, the *candidate* is the one that is best in the second objective
(ties: in the third, then in the first); with one objective, the best. It alone is then drawn again, next to plain sampling, on
*fresh* samples, which no setting was chosen by. It is **recommended** if there no objective is significantly worse than that
of plain sampling, and one is significantly better, at 5 % shared between the objectives (Bonferroni). Objectives that are pure
noise hence lead to a recommendation in fewer than one study of twenty, and what the candidate owes to luck in tuning is not in
its intervals.

"Not significantly worse" does not prove equality: the interval says how much worse it may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .halving import dominates
from .objectives import Objective
from .space import Setting

LEVEL = 0.05


def front(values: Sequence[Sequence[float]], signs: Sequence[int]) -> list[int]:
    """Which of the rows are dominated by no other, by their first objective."""
    kept = [i for i, own in enumerate(values) if not any(dominates(other, own, signs) for other in values)]
    return sorted(kept, key=lambda i: signs[0] * values[i][0])


def candidate(
    values: Sequence[Sequence[float]], plain: Sequence[float], signs: Sequence[int], tolerance: float = 0.0
) -> int | None:
    """The row to be tried on fresh samples; None where none looks better than plain sampling.

    Args:
        values: a row for each setting, on the tuning samples.
        plain: of plain sampling, on the same.
        signs: 1 for each objective whose small values are good, else -1.
        tolerance (`float`): share of plain's first objective that may be lost.
    """
    order = [*range(1, len(plain)), 0]
    found = []
    for i, row in enumerate(values):
        gains = [sign * (p - v) for v, p, sign in zip(row, plain, signs, strict=True)]
        allowed = [tolerance * abs(plain[0]), *[0.0] * (len(plain) - 1)]
        if all(gain >= -slack for gain, slack in zip(gains, allowed, strict=True)) and max(gains) > 0:
            found.append(([-gains[k] for k in order], i))
    return min(found)[1] if found else None


@dataclass(frozen=True)
class Comparison:
    """One objective of the candidate and of plain sampling on fresh samples: values, the difference with its interval, and
    what was found: "better", "worse", "worse, within the tolerance", or "no significant difference"."""

    objective: str
    label: str
    plain: float
    candidate: float
    difference: float
    low: float
    high: float
    finding: str


def compare(
    objectives: Sequence[Objective],
    readings: Sequence[torch.Tensor],
    plain: Sequence[torch.Tensor],
    tolerance: float,
    seed: int,
) -> list[Comparison]:
    """Every objective on the fresh samples; ``readings`` and ``plain`` are of the same noises."""
    found = []
    for i, (objective, own, theirs) in enumerate(zip(objectives, readings, plain, strict=True)):
        d = objective.difference(own, theirs, LEVEL / len(objectives), seed)
        value, slack = objective.value(theirs), 0.0
        if i == 0:
            slack = tolerance * abs(value)
        loss, least = objective.sign * d.difference, min(objective.sign * d.low, objective.sign * d.high)
        finding = "better" if loss < 0 else "worse" if least >= slack else "worse, within the tolerance"
        if not d.significant:
            finding = "no significant difference"
        figures = (value, objective.value(own), d.difference, d.low, d.high)
        found.append(Comparison(objective.name, objective.label, *figures, finding))
    return found


def is_recommended(comparisons: Sequence[Comparison]) -> bool:
    findings = {c.finding for c in comparisons}
    return "better" in findings and "worse" not in findings


def verdict(setting: Setting | None, comparisons: Sequence[Comparison], samples: int, look: int) -> list[str]:
    """Sentences for the reader; ``setting`` is None where nothing was tried on fresh samples."""
    if setting is None:
        return [
            "Nothing beats plain sampling: no setting was better even on the samples it was tuned on. Keep plain sampling."
        ]
    figures = "; ".join(_figures(c, len(comparisons)) for c in comparisons)
    if is_recommended(comparisons):
        words = f"Recommended: {setting}. On {samples} fresh samples, against plain sampling: {figures}."
    else:
        why = [f"worse in {c.objective}" for c in comparisons if c.finding == "worse"] or ["better in nothing"]
        words = (
            f"Nothing beats plain sampling significantly. The best candidate, {setting}, was {' and '.join(why)} on {samples} "
            f"fresh samples: {figures}. Keep plain sampling."
        )
    sentences = [words]
    if any(c.finding == "no significant difference" and c.low * c.high > 0 for c in comparisons):
        sentences.append("Of F_mem the exact McNemar test decides; the interval is from a bootstrap and may differ from it.")
    if is_recommended(comparisons) and any(c.finding != "better" and c.low < c.high for c in comparisons):
        sentences.append("Where an objective is not better, the interval says what the setting may cost.")
    if look:
        sentences.append(f"This is look {look + 1} of this study; each look draws its own fresh samples.")
    return sentences


def _figures(c: Comparison, count: int) -> str:
    interval = f"{100 * (1 - LEVEL / count):.3g} % interval {c.low:+.4g} to {c.high:+.4g}"
    return f"{c.label} {c.candidate:.4g} against {c.plain:.4g} ({c.difference:+.4g}, {interval}: {c.finding})"
