"""How much of the sound that was sent has been heard: a listener plays it at once, and in real time."""

from __future__ import annotations


class Playout:
    """Of one answer; moments in seconds on any one clock."""

    def __init__(self) -> None:
        self.sent_s = 0.0
        self._ends_s = 0.0
        self._stopped = False

    def sent(self, seconds: float, now_s: float) -> None:
        """A piece of sound went to the listener: it is played after the pieces before it."""
        if not self._stopped:
            self._ends_s = max(self._ends_s, now_s) + seconds
            self.sent_s += seconds

    def stop(self, heard_s: float) -> None:
        """The listener heard no more than so much of it: the rest, also what is still under way, is never played."""
        self.sent_s, self._ends_s, self._stopped = min(self.sent_s, heard_s), 0.0, True

    def remaining_s(self, now_s: float) -> float:
        """What is still to be played."""
        return max(0.0, self._ends_s - now_s)

    def heard_s(self, now_s: float) -> float:
        return max(0.0, self.sent_s - self.remaining_s(now_s))
