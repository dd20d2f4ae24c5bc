"""Posterior dominance, energy bounds and the energy-density relation of empirical flow matching, measured.

A training point ``x_i`` and a noise ``eps`` make the state ``x = t x_i + (1 - t) eps``. The weights ``w_j`` of the closed form
(`EmpiricalVelocity`) are the posterior of the point that ``x`` was made of; ``w_i`` is its own. With ``R = max_j ||x_j||``:

* dominance: as t grows, ``w_i`` goes to 1, and ``v*`` to ``x_i - eps``;
* gap, at any t: ``||v* - (x_i - eps)|| <= 2 R (1 - w_i) / (1 - t)``;
* bounds: ``max(0, ||eps|| - R)^2 <= ||v*||^2 <= (||eps|| + R)^2``, up to the gap;
* density, exactly: ``-log p_t(x) = ||eps||^2 / 2 + d log(1 - t) + (d/2) log(2 pi) + log n + log w_i``;
* so, under dominance, ``||v*||^2 / 2 = -log p_t(x) + ||x_i||^2 / 2 - <x_i, eps> + const``: affine with slope 1, up to what
  depends on the point and on the angle, which leaves ``R^2 = (d/2) / (d/2 + mean ||x_i||^2 + var ||x_i||^2 / 4)``.

The first four are of arXiv 2602.07928; the gap's constant, the last two lines' exact form and the expected R^2 are ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..kpe.sums import squared_norm
from ..models.empirical import EmpiricalVelocity

DOMINANT = 0.99
Velocity = Callable[[torch.Tensor, float], torch.Tensor]  # of states (B, ...) at a flow time


@dataclass(frozen=True)
class AtTime:
    """What holds at one flow time, over pairs of training points and noises. Energies are per dimension.

    Attributes:
        t: flow time.
        dominant: share of the pairs whose own weight is above .99.
        power: mean ``||v*||^2``, with the means of its bounds, ``low`` and ``high``.
        inside: share of the pairs within the bounds; ``inside_dominant`` of the dominated ones (NaN if there are none), and
            ``inside_gap`` within the bounds widened by the gap, which must be 1.
        width: mean width of the bounds over ``||v*||^2``: 0 would be tight.
        slope, intercept: of the least-squares line of ``||v*||^2 / 2`` on ``-log p_t``, both per dimension.
        r2: how much of the variance that line explains; ``expected_r2`` under dominance.
    """

    t: float
    dominant: float
    power: float
    low: float
    high: float
    inside: float
    inside_dominant: float
    inside_gap: float
    width: float
    slope: float
    intercept: float
    r2: float
    expected_r2: float


def measure_at(model: EmpiricalVelocity, t: float, indices: torch.Tensor, noise: torch.Tensor) -> AtTime:
    """Measure one flow time.

    Examples:
        >>> one_point = EmpiricalVelocity(torch.zeros(1, 2), dtype=torch.float64)
        >>> found = measure_at(one_point, 0.5, torch.zeros(4, dtype=torch.long), torch.randn(4, 2, dtype=torch.float64))
        >>> found.dominant, round(found.r2, 6)
        (1.0, 1.0)

    Args:
        model (`EmpiricalVelocity`): the training set.
        t (`float`): flow time, from 0 to below 1.
        indices (`torch.Tensor`, (B,)): of training points. A point that occurs twice never dominates: leave out copies.
        noise (`torch.Tensor`, (B, ...)): of each, in the shape of the data.

    Raises:
        ValueError: another t, or shapes that do not match.
    """
    if not 0 <= t < 1:
        raise ValueError(f"t is {t}; give a flow time from 0 to below 1, where all weights are known.")
    eps = noise.double()
    points = model.data[indices].double().reshape(eps.shape)
    x, n, d = t * points + (1 - t) * eps, len(model.data), model.data.shape[1]
    velocity, density = model.velocity(x, t), model.neg_log_density(x, t)
    power, noise_square, square = (squared_norm(values) for values in (velocity, eps, points))
    constant = d * math.log(1 - t) + d / 2 * math.log(2 * math.pi) + math.log(n)
    own = (density - noise_square / 2 - constant).exp()
    radius = model.data.double().norm(dim=1).max()
    gap = 2 * radius * (1 - own).clamp(min=0) / (1 - t)
    speed, length = power.sqrt(), noise_square.sqrt()
    low, high = (length - radius).clamp(min=0), length + radius
    slack = 1e-9 * high  # of rounding
    inside, dominant = (low - slack <= speed) & (speed <= high + slack), own > DOMINANT
    widened = (low - gap - slack <= speed) & (speed <= high + gap + slack)
    slope, intercept, r2 = fitted_line(density / d, power / (2 * d))
    spread = float(square.mean() + (square.var() / 4 if len(square) > 1 else 0))
    return AtTime(
        t=t,
        dominant=_share(dominant),
        power=float(power.mean()) / d,
        low=float(low.square().mean()) / d,
        high=float(high.square().mean()) / d,
        inside=_share(inside),
        inside_dominant=_share(inside[dominant]),
        inside_gap=_share(widened),
        width=float(((high.square() - low.square()) / power).mean()),
        slope=slope,
        intercept=intercept,
        r2=r2,
        expected_r2=(d / 2) / (d / 2 + spread),
    )


def _share(hits: torch.Tensor) -> float:
    return float(hits.double().mean())


def fitted_line(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
    """Slope, intercept and R^2 of the least-squares line of ``y`` (B,) on ``x`` (B,)."""
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    return slope, float(y.mean()) - slope * float(x.mean()), float((dx @ dy) ** 2 / ((dx @ dx) * (dy @ dy)))


@dataclass(frozen=True)
class Paths:
    """Mean power per dimension, ``||v||^2 / d``, at the flow times ``t`` along Euler paths from the same noises.

    Attributes:
        closed: of the closed form along its own paths.
        net: of the network along its own paths; None without one.
        closed_at_net: of the closed form at the network's states; None likewise.
    """

    t: list[float]
    closed: list[float]
    net: list[float] | None = None
    closed_at_net: list[float] | None = None

    @staticmethod
    def late(power: Sequence[float]) -> float:
        """How much the power has grown at the last step, over that in the middle."""
        return power[-1] / power[len(power) // 2]


@torch.no_grad()
def measure_paths(
    model: EmpiricalVelocity,
    noise: torch.Tensor,
    num_inference_steps: int,
    net: Velocity | None = None,
    after_step: Callable[[], object] = lambda: None,
) -> Paths:
    """Walk from ``noise`` (B, ...) with the closed form and with a network, in even Euler steps.

    Args:
        model (`EmpiricalVelocity`): the closed form.
        noise (`torch.Tensor`, (B, ...)): in the shape of the data.
        num_inference_steps (`int`): steps of ``1 / num_inference_steps``.
        net (`Callable`, *optional*): ``v = net(x, t)``, the velocity towards the data.
        after_step (`Callable`): called after each step.
    """
    times = [i / num_inference_steps for i in range(num_inference_steps)]
    closed, own, exact = list[float](), list[float](), list[float]()
    x = y = noise
    for t in times:
        velocity = model.velocity(x, t)
        closed.append(float(squared_norm(velocity).mean()) / noise[0].numel())
        x = x + velocity / num_inference_steps
        if net is not None:
            velocity = net(y, t)
            own.append(float(squared_norm(velocity).mean()) / noise[0].numel())
            exact.append(float(squared_norm(model.velocity(y, t)).mean()) / noise[0].numel())
            y = y + velocity / num_inference_steps
        after_step()
    return Paths(times, closed, *((own, exact) if net is not None else ()))
