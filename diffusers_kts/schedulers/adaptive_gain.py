"""Two rules that give every sample its own gain, from the record of its run so far. Tensors only; not from the paper.

Every row goes by itself, and nothing waits for the device.
"""

import torch

from ..kpe.trace import turning_so_far


def budget_factor(
    power: torch.Tensor, gains: torch.Tensor, etas: torch.Tensor, weights: torch.Tensor, budget: float, max_gain: float
) -> torch.Tensor:
    """(B,) by which to scale the planned gain of the present step ``i``, so that a sample that went on at its present speed
    would end on its energy budget ``C``. With ``S_i`` the path energy before, and ``R_i`` what the rest would cost,

        R_i = 1/2 ||v_i||^2 sum_{j>=i} eta_j^2 w_j,    factor = min(sqrt((C - S_i) / R_i), max_gain).

    The total never exceeds ``C``, since a step costs no more than its share of ``R_i``. While ``max_gain`` does not bind, what
    is left falls as the sum over ``j >= i`` does, on any field, and nothing is left at the end; with ``eta = 1`` the motion
    then has constant speed, by which a given energy goes furthest.

    Args:
        power (`torch.Tensor`, (B, n)): ``||v||^2`` of the last n steps, the present one included.
        gains (`torch.Tensor`, (B, n)): the gains they were made with; that of the present one is not read.
        etas (`torch.Tensor`, (N - i + n - 1,)): planned gains of the n steps and of those to come.
        weights (`torch.Tensor`, (N - i + n - 1,)): flow time of these steps.
        budget (`float`): ``C``, in squared latent units.
        max_gain (`float`): 1 for a cap, more for a target.
    """
    made = power.shape[1]
    spent = 0.5 * (gains.square() * power * weights[:made])[:, :-1].sum(1)
    ahead = 0.5 * power[:, -1] * (etas.square() * weights)[made - 1 :].sum()
    factor = ((budget - spent).clamp(min=0) / ahead).sqrt().clamp(max=max_gain)
    return torch.where(ahead > 0, factor, 1.0)


def decided(
    power: torch.Tensor, turn: torch.Tensor, t: torch.Tensor, threshold: float, start: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which samples counted as decided before the present step, and which do with it; (B,) bool each.

    A sample is decided from the first step at or after flow time ``start`` where `turning_so_far` reaches ``threshold``.

    Args:
        power (`torch.Tensor`, (B, n)): of the steps so far, see `turning_so_far`.
        turn (`torch.Tensor`, (B, n)): likewise.
        t (`torch.Tensor`, (n,)): their flow times.
        threshold (`float`): turning at which a sample is decided.
        start (`float`): flow time from which that counts.
    """
    reached = (turning_so_far(power, turn, t) >= threshold) & (t >= start)
    return reached[:, :-1].any(1), reached.any(1)
