"""Measures for how long something has not moved. No clock and no processes: times and signs are given.

Time counts only as far as the watcher itself ran: when it was stopped as well (a suspended machine, a paused container,
a debugger), nothing is learned about the others, and none has stalled.
"""

from __future__ import annotations

from collections.abc import Hashable

#: The most that one look adds, in seconds: looks come every 0.1 s, and a machine may be busy.
LONGEST_STEP_S = 0.5


class Stillness:
    """For how long each part has shown the same sign."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._step_s = 0.0
        self._still: dict[str, tuple[Hashable | None, float]] = {}

    def look(self, now_s: float) -> None:
        """A look begins at `now_s` of any clock; every part is seen once in it."""
        self._step_s = 0.0 if self._last_s is None else min(max(0.0, now_s - self._last_s), LONGEST_STEP_S)
        self._last_s = now_s

    def seconds(self, part: str, sign: Hashable, weight: float = 1.0) -> float:
        """`part` shows `sign`: the seconds for which it has shown that sign and no other, as far as they count.

        Args:
            sign: not None.
            weight: what a second since the last look counts.
        """
        before, still_s = self._still.get(part, (None, 0.0))
        still_s = still_s + self._step_s * weight if sign == before else 0.0
        self._still[part] = sign, still_s
        return still_s
