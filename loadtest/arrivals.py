"""When requests of the open loop begin: a Poisson source that stays true when the generator is late."""

from __future__ import annotations

import random
from collections.abc import Iterator


class PoissonSource:
    """Requests at `rate_hz` on average, each at its own time whether or not earlier ones have ended.

    Sources add up: N of them at rate r are one Poisson process of rate N*r, so a load can be spread over users and
    processes. Times are the *intended* starts: by how much a late generator missed them is measured and reported.
    """

    def __init__(self, rate_hz: float, start_s: float, random_: random.Random) -> None:
        self._rate_hz, self._random = rate_hz, random_
        self.next_s = start_s + self._gap_s()

    def due(self, now_s: float) -> Iterator[float]:
        """Intended starts up to now, each once."""
        while self.next_s <= now_s:
            intended_s = self.next_s
            self.next_s += self._gap_s()
            yield intended_s

    def _gap_s(self) -> float:
        return self._random.expovariate(self._rate_hz)
