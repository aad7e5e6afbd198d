"""The highest arrival rate that keeps the promise, found with few load points. Pure: a probe is any function.

The rate is doubled until a point fails, then the gap is halved (in ratio) until it is narrow. Because a point near
the limit may fall either way by chance, what is found is the highest rate below which every point passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from loadtest.errors import wrong

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Point(Generic[Found]):
    """One load point: the rate, whether the promise was kept, and what was seen."""

    rate_hz: float
    kept: bool
    seen: Found


@dataclass(frozen=True, slots=True)
class SearchResult(Generic[Found]):
    """`kept_hz`: the highest rate that passed (None: not even the lowest); `broken_hz`: the lowest that failed.

    `stopped` says why the search ended: "narrow enough", "out of time", "highest rate kept" or "lowest rate broken".
    """

    kept_hz: float | None
    broken_hz: float | None
    points: tuple[Point[Found], ...]
    stopped: str


def search(
    probe: Callable[[float], tuple[bool, Found]],
    lowest_hz: float,
    highest_hz: float,
    has_time: Callable[[], bool],
    ratio: float = 1.1,
) -> SearchResult[Found]:
    """Search between two rates.

    Args:
        probe: loads the server at a rate: whether it kept the promise, and what was seen.
        has_time: asked before each point but the first.
        ratio: the search ends when the lowest failed rate is less than this times the highest kept one.

    Raises:
        LoadTestError: rates or ratio that bound nothing.
    """
    if not 0 < lowest_hz < highest_hz < math.inf:
        raise wrong("--lowest-rate, --highest-rate", (lowest_hz, highest_hz), "they are above 0 and in this order")
    if not 1 < ratio < math.inf:
        raise wrong("--ratio", ratio, "it is above 1")
    points: list[Point[Found]] = []
    rate_hz = lowest_hz
    while True:
        kept, seen = probe(rate_hz)
        points.append(Point(rate_hz, kept, seen))
        low, high = bracket(points)
        if low is None:
            return SearchResult(None, high, tuple(points), "lowest rate broken")
        if high is None and low >= highest_hz:
            return SearchResult(low, None, tuple(points), "highest rate kept")
        if high is not None and high <= low * ratio:
            return SearchResult(low, high, tuple(points), "narrow enough")
        if not has_time():
            return SearchResult(low, high, tuple(points), "out of time")
        rate_hz = min(2 * low, highest_hz) if high is None else math.sqrt(low * high)


def bracket(points: list[Point[Found]]) -> tuple[float | None, float | None]:
    """The lowest rate that failed, and the highest that passed below it."""
    broken = [point.rate_hz for point in points if not point.kept]
    high = min(broken, default=None)
    low = max((p.rate_hz for p in points if p.kept and (high is None or p.rate_hz < high)), default=None)
    return low, high
