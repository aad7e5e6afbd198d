"""Bootstrap intervals: values by hand, coverage of what is known, the same each time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.intervals import difference, rate


def test_a_rate_is_the_sum_of_errors_over_the_sum_of_words() -> None:
    found = rate(np.array([[1.0, 2.0], [0.0, 8.0], [1.0, 10.0]]))
    assert found.value == pytest.approx(0.1)
    assert 0.0 <= found.low <= found.value <= found.high <= 0.5
    assert rate(np.array([[1.0, 2.0], [0.0, 8.0], [1.0, 10.0]])) == found


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    right = np.arange(400) < 120
    found = rate(np.stack([right, np.ones(400)], axis=1))
    half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert found.low == pytest.approx(0.3 - half, abs=0.01)
    assert found.high == pytest.approx(0.3 + half, abs=0.01)


def test_a_difference_is_of_the_same_cases() -> None:
    before = np.stack([np.random.default_rng(0).integers(0, 5, 50), np.full(50, 10)], axis=1).astype(float)
    after = before + np.array([1.0, 0.0])
    found = difference(before, after)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))  # each case lost one word of ten
    assert difference(before, before).high == 0.0


def test_no_cases_have_no_rate() -> None:
    nothing = np.zeros((0, 2))
    assert math.isnan(rate(nothing).value)
    assert math.isnan(difference(nothing, nothing).low)
    assert math.isnan(rate(np.zeros((3, 2))).high)
