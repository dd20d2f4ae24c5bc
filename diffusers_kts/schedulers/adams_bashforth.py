"""Adams-Bashforth weights on a grid of any spacing."""

from collections.abc import Sequence

import numpy as np


def adams_bashforth(times: Sequence[float], index: int, order: int = 2) -> list[float]:
    """How much each velocity counts in the step from ``times[index]`` to the next, newest first; the weights add up to 1.

    They integrate the polynomial through the last velocities: ``x_{i+1} = x_i + (t_{i+1} - t_i) sum_j c_j v_{i-j}``. For two
    velocities ``c = (1 + r/2, -r/2)`` with ``r`` the ratio of this interval to the one before.

    Examples:
        >>> adams_bashforth([0.0, 0.25, 0.5], 1)
        [1.5, -0.5]

    Args:
        times (`Sequence[float]`): grid, strictly monotonic.
        index (`int`): of the step.
        order (`int`, defaults to 2): velocities used; fewer where the grid has not so many yet.
    """
    h = times[index + 1] - times[index]
    nodes = [(times[index - j] - times[index]) / h for j in range(min(order, index + 1))]
    powers = np.arange(len(nodes))
    weights = np.linalg.solve(np.power.outer(nodes, powers).T, 1 / (powers + 1))
    return [round(float(c), 15) for c in weights]
