"""When calls begin that wait for nobody: a Poisson source, and how it stays true when the generator is late."""

from __future__ import annotations

import random
from collections.abc import Iterator


class PoissonSource:
    """Calls at `rate_hz` on average, each at its own time whatever became of the ones before.

    Sources add up: N of them at rate r are one Poisson process of rate N*r, so a load can be spread over users and
    processes. Times are the *intended* starts; a late generator sends late and the delay counts as latency.
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
