"""Decides whether and when a server that failed is started again. No clock, no processes: times are given."""

from __future__ import annotations

#: Wait before the second start in a row; it doubles from there. The first is at once: most failures happen once.
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0


class RestartPolicy:
    """Counts failures in a row.

    A server that was ready for longer than it had taken to start ends the row: it serves for most of the time, and
    starting it again is worth more than giving up. The rule fits a start of 3 s as well as one of 10 minutes.

    Args:
        limit: failures in a row that are answered with a new start; one more, and the launcher ends. 0: none is.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_a_row = 0

    def failed(self, start_s: float, ready_s: float) -> float | None:
        """Seconds to wait before the next start, None to give up.

        Args:
            start_s: how long the start took.
            ready_s: how long the server was ready after it; 0 if it never was.
        """
        self.in_a_row = 1 if ready_s > start_s else self.in_a_row + 1
        if self.in_a_row > self._limit:
            return None
        return 0.0 if self.in_a_row == 1 else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self.in_a_row - 2, 10))
