"""eta(t), the gain of kinetic trajectory shaping (KTS): shapes, net displacement, limits. Numbers and tensors only.

The shaped ODE is ``dx/dt = eta(t) v(x, t)`` with flow time ``t`` from 0 (noise) to 1 (data). Before ``tau_split`` the gain
*launches* (``eta = 1 + alpha``), from ``tau_split`` on it *lands* (``eta = 1 - beta``). Source: "A Kinetic Energy Perspective
of Flow Matching", arXiv 2602.07928.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .flow_coordinates import array_library

SCHEDULES = ("linear", "constant", "exponential")


def is_number(value: Any) -> bool:
    """Whether a setting is a finite Python number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Gain:
    """The gain ``eta(t)``. With ``r = (t - tau) / (1 - tau)``, the launch and landing shapes are

    ==========  =====================================  ====================
    schedule    ``(eta - 1) / alpha_0``, ``t < tau``   ``(1 - eta) / beta_0``
    ==========  =====================================  ====================
    linear      ``1 - t/tau``                          ``r``
    constant    ``1``                                  ``1``
    exponential ``(e^{k(1-t/tau)} - 1)/(e^k - 1)``     ``e^{kr} - 1`` (not normalized)
    ==========  =====================================  ====================

    Examples:
        >>> Gain(alpha_0=0.1, beta_0=0.02)(0.0)
        1.1
        >>> round(Gain().net_displacement(), 5)
        0.98155

    Args:
        alpha_0 (`float`): strength of the launch.
        beta_0 (`float`): strength of the landing.
        tau_split (`float`): the flow time, in (0, 1), at which landing begins; ``t == tau_split`` is landing.
        k (`float`): rate of the exponential shapes, > 0.
        early_schedule (`str`): shape of the launch: "linear", "constant" or "exponential".
        late_schedule (`str`): shape of the landing, likewise.

    Raises:
        ValueError: a setting is not finite, out of range or unknown, or the gain would be negative somewhere.
    """

    alpha_0: float = 0.01
    beta_0: float = 0.01
    tau_split: float = 0.6
    k: float = 3.0
    early_schedule: str = "linear"
    late_schedule: str = "exponential"

    def __post_init__(self) -> None:
        for name in ("alpha_0", "beta_0", "tau_split", "k"):
            value = getattr(self, name)
            if not is_number(value):
                raise ValueError(f"{name} is {value!r}; give a finite Python number.")
        if not 0 < self.tau_split < 1:
            raise ValueError(f"tau_split is {self.tau_split}; give a flow time strictly between 0 (noise) and 1 (data).")
        if not 0 < self.k <= 100:
            raise ValueError(f"k is {self.k}; give a rate above 0 and at most 100 (the paper uses 3).")
        for name in ("early_schedule", "late_schedule"):
            if getattr(self, name) not in SCHEDULES:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(SCHEDULES)}.")
        if self.alpha_0 < -1:
            raise ValueError(f"alpha_0 is {self.alpha_0}: the gain would be negative at launch; give -1 or more.")
        if self.beta_0 > self.largest_beta_0:
            raise ValueError(
                f"beta_0 is {self.beta_0}: the gain would be {1 - self.beta_0 / self.largest_beta_0:.4g} at t = 1 and the "
                f"velocity would reverse; with the {self.late_schedule} landing give at most {self.largest_beta_0:.4g}."
            )

    @property
    def largest_beta_0(self) -> float:
        """The ``beta_0`` at which the gain reaches 0 at ``t = 1``, given the other settings."""
        return 1 / math.expm1(self.k) if self.late_schedule == "exponential" else 1.0

    @property
    def is_identity(self) -> bool:
        return self.alpha_0 == 0 and self.beta_0 == 0

    def __call__(self, t: Any) -> Any:
        """eta at flow time ``t``: a float for a number, for a tensor or array one of the same shape and dtype."""
        xp = array_library(t)
        if xp is np and not isinstance(t, np.ndarray):
            return float(self._eta(np.float64(t), np))
        return self._eta(t, xp)

    def _eta(self, t: Any, xp: Any) -> Any:
        """With the functions of ``xp``, torch or numpy."""
        launch = (1 - t / self.tau_split).clip(min=0)
        landing = ((t - self.tau_split) / (1 - self.tau_split)).clip(min=0)
        if self.early_schedule == "constant":
            launch = xp.ones_like(t)
        elif self.early_schedule == "exponential":
            launch = xp.expm1(self.k * launch) / math.expm1(self.k)
        if self.late_schedule == "constant":
            landing = xp.ones_like(t)
        elif self.late_schedule == "exponential":
            landing = xp.expm1(self.k * landing)
        return xp.where(t < self.tau_split, 1 + self.alpha_0 * launch, 1 - self.beta_0 * landing)

    def net_displacement(self, t_start: float = 0.0, t_end: float = 1.0) -> float:
        """The integral of eta from ``t_start`` to ``t_end`` in closed form; what is missing stays in the image as noise."""
        tau, k = self.tau_split, self.k

        def launched(t: float) -> float:
            if self.early_schedule == "linear":
                return t - t * t / (2 * tau)
            if self.early_schedule == "constant":
                return t
            return (tau / k * (math.exp(k) - math.exp(k * (1 - t / tau))) - t) / math.expm1(k)

        def landed(t: float) -> float:
            r = (t - tau) / (1 - tau)
            if self.late_schedule == "linear":
                return (1 - tau) * r * r / 2
            if self.late_schedule == "constant":
                return (1 - tau) * r
            return (1 - tau) * (math.expm1(k * r) / k - r)

        def antiderivative(t: float) -> float:
            return t + self.alpha_0 * launched(min(t, tau)) - self.beta_0 * landed(max(t, tau))

        return antiderivative(t_end) - antiderivative(t_start)
