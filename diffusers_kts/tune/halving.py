"""Successive halving on the number of samples: a setting is drawn on an eighth of them first, and continues if it may be good.

Samples that a setting has not drawn yet are taken from plain sampling, of the same noises. So an objective always sees the
same number of them: a Frechet distance of few samples has a bias that differs between settings, and would mislead.

With one objective optuna's `SuccessiveHalvingPruner` decides: at each rung the better half stays. It knows no more than one
objective. With several there is no better half, since settings on the front are good for different ends. There a setting stops
at a rung if plain sampling, or another setting that got there, **beats it twice**: with the first and with the second half of
the rung's samples alike it is better in every objective. The two halves share no noise, so they are the margin: two settings
of equal worth change places between the halves as often as not, and no estimate of the noise of an objective (a Frechet
distance, a user's score) is needed. A tie lets a setting continue, since few samples often tie in F_mem. Stopping one of two
equals costs nothing, and a setting that is better in any objective by more than the noise stays.
"""

import itertools
from collections.abc import Iterable, Sequence

import torch

from .objectives import Objective
from .settings import PIECES

SHARES = (8, 4, 2, 1)  # rung i is drawn with num_samples / SHARES[i] samples
RESOURCES = tuple(SHARES[0] // share for share in SHARES)  # what optuna calls the rungs
Halves = list[list[float]]  # values of the objectives with the first half of a rung's samples, and with the second


def rungs(num_samples: int) -> list[int]:
    return [num_samples // share for share in SHARES]


def batches(start: int, stop: int, num_samples: int, batch_size: int) -> list[range]:
    """The samples from ``start`` up to ``stop`` in batches, of which none crosses the middle or the end of a rung."""
    size = min(batch_size, num_samples // PIECES)
    edges = sorted({start, stop, *(m for m in (num_samples // PIECES, *rungs(num_samples)) if start < m < stop)})
    return [
        range(first, min(first + size, end)) for begin, end in itertools.pairwise(edges) for first in range(begin, end, size)
    ]


def filled(own: torch.Tensor, plain: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Readings of plain sampling with those from ``start`` on replaced by ``own``, as far as they go."""
    return torch.cat([plain[:start], own, plain[start + len(own) :]])


def halves(objectives: Sequence[Objective], own: Sequence[torch.Tensor], plain: Sequence[torch.Tensor]) -> Halves:
    """Values with the first half of what a setting has read so far, and with the second."""
    first, second = [], []
    for objective, reading, base in zip(objectives, own, plain, strict=True):
        middle = len(reading) // 2
        first.append(objective.value(filled(reading[:middle], base)))
        second.append(objective.value(filled(reading[middle:], base, middle)))
    return [first, second]


def dominates(a: Sequence[float], b: Sequence[float], signs: Sequence[int]) -> bool:
    """Whether ``a`` is no worse than ``b`` in any objective, and better in one."""
    margins = [sign * (y - x) for x, y, sign in zip(a, b, signs, strict=True)]
    return min(margins) >= 0 and max(margins) > 0


def beaten_twice(own: Halves, others: Iterable[Halves], signs: Sequence[int]) -> bool:
    """Whether one of the others is better in every objective on both halves."""
    return any(all(_beats(a, b, signs) for a, b in zip(other, own, strict=True)) for other in others)


def _beats(a: Sequence[float], b: Sequence[float], signs: Sequence[int]) -> bool:
    return all(sign * (y - x) > 0 for x, y, sign in zip(a, b, signs, strict=True))
