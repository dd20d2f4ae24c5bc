"""Spearman's rank correlation, with an interval."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, spearmanr


@dataclass(frozen=True)
class Correlation:
    """``rho`` of ``n`` pairs, its interval, and the p-value of no association."""

    rho: float
    low: float
    high: float
    p_value: float
    n: int


def rank_correlation(x: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> Correlation | None:
    """Of the pairs (n,), (n,) whose two numbers are finite; None for fewer than four, or where one side is constant.

    The interval is Fisher's, with the variance ``(1 + rho^2 / 2) / (n - 3)`` of Bonett and Wright (2000).
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found = spearmanr(x, y)
    rho = float(found.statistic)
    inside = min(max(rho, -1 + 1e-15), 1 - 1e-15)
    reach = norm.isf((1 - confidence) / 2) * math.sqrt((1 + rho * rho / 2) / (len(x) - 3))
    low, high = math.tanh(math.atanh(inside) - reach), math.tanh(math.atanh(inside) + reach)
    return Correlation(rho, low, high, float(found.pvalue), len(x))
