"""Tests of several claims at once."""

import numpy as np


def holm(p_values: list[float]) -> list[float]:
    """Corrected after Holm (1979)."""
    order, corrected, worst = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = worst
    return corrected
