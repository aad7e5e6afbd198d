"""Histograms: percentiles within the promised error, merging loses nothing, text brings everything back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import LoadTestError
from loadtest.histogram import MAX_MS, PERCENTILES, STEPS_PER_MS, Histogram

#: The width of a cell.
RELATIVE_ERROR = 1 / 128
values = st.lists(st.floats(0, MAX_MS), min_size=1, max_size=60)


@given(values, st.sampled_from((*PERCENTILES, 100.0)))
@settings(max_examples=60, deadline=None)
def test_a_percentile_is_a_value_within_one_cell(numbers: list[float], percent: float) -> None:
    # Nearest rank: the least value that at least so many percent of the values do not exceed.
    exact = min(v for v in numbers if 100 * sum(other <= v for other in numbers) >= percent * len(numbers))
    found = Histogram.of(numbers).percentile(percent)
    assert found is not None
    assert abs(found - exact) <= exact * RELATIVE_ERROR + 1 / STEPS_PER_MS


@pytest.mark.parametrize("count", range(1, 20))
def test_p95_of_fewer_than_twenty_values_is_the_largest(count: int) -> None:
    found = Histogram.of([10.0] * (count - 1) + [900.0]).percentile(95)
    assert found == pytest.approx(900, rel=RELATIVE_ERROR)


@pytest.mark.parametrize(("percent", "rank"), [(1, 10), (57, 570), (99, 990), (99.5, 995), (99.9, 999), (100, 1000)])
def test_a_percentile_whose_rank_is_whole_is_that_value(percent: float, rank: int) -> None:
    for below, value in ((rank, 10.0), (rank - 1, 900.0)):
        found = Histogram.of([10.0] * below + [900.0] * (1000 - below)).percentile(percent)
        assert found == pytest.approx(value, rel=RELATIVE_ERROR)


@given(values, values)
@settings(max_examples=30, deadline=None)
def test_merging_is_the_histogram_of_all_values(left: list[float], right: list[float]) -> None:
    merged, travelled = Histogram.of(left), Histogram()
    merged.merge(Histogram.of(right))
    for part in (left, right):
        travelled.merge(Histogram.from_text(Histogram.of(part).to_text()))
    both = Histogram.of(left + right)
    for histogram in (merged, travelled):
        assert histogram.percentiles(range(101)) == both.percentiles(range(101))
        assert histogram.count == len(left) + len(right)


def test_nothing_and_too_much() -> None:
    empty = Histogram()
    assert (empty.count, empty.mean_ms, empty.max_ms, empty.percentiles()) == (0, None, None, [None] * 4)
    empty.merge(Histogram.from_text(Histogram().to_text()))
    assert empty.count == 0
    empty.record(10 * MAX_MS)
    assert empty.percentile(50) == pytest.approx(MAX_MS, rel=RELATIVE_ERROR)
    with pytest.raises(LoadTestError, match="not a histogram"):
        Histogram.from_text("SGVsbG8=")
