"""The weights of one step, by least squares in closed form.

A step of trajectory n from ``x`` along the velocities ``v_0, v_1, ...`` (the newest first) over the interval ``h`` ends at
``x + h sum_j c_j v_j``. The weights ``c`` minimize

    sum_n w_n ||x + h sum_j c_j v_j - y||^2  +  lambda tr(G)/k ||c - c_AB||^2,    G = sum_n w_n h^2 <v_j, v_l>,

with ``y`` the state of the teacher, k the number of velocities and ``c_AB`` the Adams-Bashforth weights of the same grid. An
infinite ``lambda`` leaves those. ``w_n`` is the inverse of the distance that is left, found in a few rounds: what is minimal
then is the sum of the distances, and a trajectory that has gone astray (to another image, in a model that memorizes) does not
outweigh all others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

ROUNDS = 20
LEAST = 0.05  # of the mean distance; a trajectory that arrives exactly would have all the weight


@dataclass(frozen=True)
class Equations:
    """Normal equations ``G (c - c_AB) = b`` of each trajectory of a batch.

    Attributes:
        gram: (B, k, k) float64, G of each trajectory.
        moment: (B, k) float64, b.
        rest: (B,) float64, squared distance that Adams-Bashforth weights leave.
    """

    gram: torch.Tensor
    moment: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(
        cls,
        sample: torch.Tensor,
        velocities: Sequence[torch.Tensor],
        interval: float,
        target: torch.Tensor,
        prior: Sequence[float],
    ) -> "Equations":
        """Those of a step from ``sample`` (B, ...) that should end at ``target``."""
        moves = interval * torch.stack([_rows(v) for v in velocities], 2)
        rest = _rows(target) - _rows(sample) - moves @ torch.tensor(prior, dtype=torch.float64)
        return cls(moves.mT @ moves, (moves.mT @ rest[..., None])[..., 0], rest.square().sum(1))

    @classmethod
    def cat(cls, parts: "Sequence[Equations]") -> "Equations":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("gram", "moment", "rest")))

    def weights(self, prior: Sequence[float], shrinkage: float) -> list[float]:
        """The k weights ``c``, for ``lambda = shrinkage``."""
        if math.isinf(shrinkage):
            return list(prior)
        change = torch.zeros(len(prior), dtype=torch.float64)
        eye = torch.eye(len(prior), dtype=torch.float64)
        for _ in range(ROUNDS):
            distance = self._distance(change)
            w = 1 / distance.clamp(min=max(LEAST * float(distance.mean()), torch.finfo(torch.float32).tiny))
            gram, moment = torch.einsum("n,njl->jl", w, self.gram), w @ self.moment
            ridge = shrinkage * gram.trace() / len(gram)
            change = torch.linalg.pinv(gram + ridge * eye, rtol=1e-13, hermitian=True) @ moment
        return [c + d for c, d in zip(prior, change.tolist(), strict=True)]

    def _distance(self, change: torch.Tensor) -> torch.Tensor:
        """(B,) that is left with these weights less Adams-Bashforth's."""
        squared = self.rest - 2 * self.moment @ change + torch.einsum("j,njl,l->n", change, self.gram, change)
        return squared.clamp(min=0).sqrt()


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """(B, d) on the CPU, in float64, which not every device has."""
    return tensor.detach().cpu().double().flatten(1)
