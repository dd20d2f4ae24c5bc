"""The measured grid: flow times that are closer where the velocity turns faster."""

from collections.abc import Sequence

import numpy as np

LEAST = 1e-3  # of the largest density; flow that does not turn at all still needs a step


def measured_grid(times: Sequence[float], acceleration: Sequence[float], steps: int, exponent: float) -> list[float]:
    """The quantiles of ``int a(t)^p dt``: N + 1 flow times. An exponent of 0 gives even steps.

    A step of length h of a method of order q errs by about ``a h^(q+1)``; a density of ``a^(1/(q+1))`` spreads such errors
    evenly, which is why powers below 1 do better.

    Args:
        times (`Sequence[float]`, K + 1): flow times.
        acceleration (`Sequence[float]`, K): ``a``, on the intervals between them.
        steps (`int`): N.
        exponent (`float`): p.
    """
    t, a = np.asarray(times, np.float64), np.asarray(acceleration, np.float64)
    density = np.ones_like(a) if not a.max() > 0 else np.maximum(a / a.max(), LEAST) ** exponent
    passed = np.concatenate([[0.0], np.cumsum(density * np.diff(t))])
    grid = np.interp(np.linspace(0, passed[-1], steps + 1), passed, t)
    grid[0], grid[-1] = t[0], t[-1]
    return [round(float(time), 7) for time in grid]
