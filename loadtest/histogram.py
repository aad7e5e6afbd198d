"""A histogram of milliseconds that keeps every value within 1 %, merges without loss, and travels as text.

HDR histogram (package `hdrhistogram`): cells of equal relative width, so that merging adds counts and a percentile of
merged histograms is the percentile of all values, within the width of one cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hdrh.histogram import HdrHistogram

from loadtest.errors import LoadTestError

#: Values are kept in steps of 0.1 ms, up to an hour; longer ones count as an hour.
STEPS_PER_MS = 10
MAX_MS = 3_600_000.0
#: Two significant digits: a cell is at most 1/128 of its value wide, and never narrower than one step.
SIGNIFICANT_DIGITS = 2

PERCENTILES = (50.0, 90.0, 95.0, 99.0)


class Histogram:
    """Counts of values in milliseconds, from 0 to an hour."""

    def __init__(self) -> None:
        self._counts = HdrHistogram(1, round(MAX_MS * STEPS_PER_MS), SIGNIFICANT_DIGITS)

    def record(self, value_ms: float) -> None:
        self._counts.record_value(round(min(max(value_ms, 0.0), MAX_MS) * STEPS_PER_MS))

    def merge(self, other: Histogram) -> None:
        """Take in all values of another one."""
        if other.count:
            self._counts.add(other._counts)

    @property
    def count(self) -> int:
        return int(self._counts.get_total_count())

    @property
    def mean_ms(self) -> float | None:
        return self._counts.get_mean_value() / STEPS_PER_MS if self.count else None

    @property
    def max_ms(self) -> float | None:
        return self._counts.get_max_value() / STEPS_PER_MS if self.count else None

    def percentile(self, percent: float) -> float | None:
        """The value in ms that `percent` % of the values do not exceed; None of nothing."""
        return self.percentiles((percent,))[0]

    def percentiles(self, percents: Sequence[float] = PERCENTILES) -> list[float | None]:
        if not (count := self.count):
            return [None] * len(percents)
        # The library rounds the rank to the nearest: P95 of 11 values would leave out the largest of them.
        asked = [100 * math.ceil(percent * count / 100) / count for percent in percents]
        values = self._counts.get_percentile_to_value_dict(asked)
        return [values[percent] / STEPS_PER_MS for percent in asked]

    def to_text(self) -> str:
        """The library's own compressed form, as base64."""
        return str(self._counts.encode().decode())

    @classmethod
    def from_text(cls, text: str) -> Histogram:
        """The inverse of `to_text`.

        Raises:
            LoadTestError: not a histogram.
        """
        histogram = cls()
        try:
            histogram._counts.decode_and_add(text)
        except Exception as error:  # the library raises what zlib, base64 and its own checks raise
            raise LoadTestError(f"not a histogram: {text[:40]!r} ({error})") from error
        return histogram

    @classmethod
    def of(cls, values_ms: Iterable[float]) -> Histogram:
        histogram = cls()
        for value_ms in values_ms:
            histogram.record(value_ms)
        return histogram
