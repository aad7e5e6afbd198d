"""Bootstrap confidence intervals of rates over cases: the cases are drawn anew, each with its share of both sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Of the interval.
LEVEL = 0.95
_DRAWS = 2000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate and the ends of its interval; NaN where there are no cases."""

    value: float
    low: float
    high: float


def rate(parts: NDArray[np.float64]) -> Estimate:
    """Of `parts` [cases, 2]: sum of the first column over that of the second."""
    if not len(parts) or not parts[:, 1].sum():
        return Estimate(math.nan, math.nan, math.nan)
    return _estimate(float(_ratio(parts.sum(axis=0))), _ratio(_sums(parts)))


def difference(before: NDArray[np.float64], after: NDArray[np.float64]) -> Estimate:
    """Rate of `after` less that of `before`, of the same cases in the same order: each draw takes a case in both."""
    if not len(before) or not before[:, 1].sum() or not after[:, 1].sum():
        return Estimate(math.nan, math.nan, math.nan)
    sums = _sums(np.hstack([before, after]))
    value = float(_ratio(after.sum(axis=0)) - _ratio(before.sum(axis=0)))
    return _estimate(value, _ratio(sums[:, 2:]) - _ratio(sums[:, :2]))


def _sums(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the columns for each draw [draws, columns]."""
    random = np.random.default_rng(_SEED)
    return np.stack([parts[random.integers(0, len(parts), len(parts))].sum(axis=0) for _ in range(_DRAWS)])


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., 2] -> [...]; NaN where a draw has nothing to count."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    tail = (1.0 - LEVEL) / 2
    low, high = np.nanquantile(draws, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))
