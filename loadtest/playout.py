"""How one stream is played: when each sample is, where playing breaks off, how much sound is in hand.

Pure: arrival times in, playing times out. The player is the plainest there is: it starts `prebuffer_s` after the
first samples came, plays without pause while it has samples, falls silent when it has none, and goes on with the next
ones at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Time is summed in floating point; less than this (a fiftieth of a sample) is no gap.
_ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples that came together. `arrived_s` on any clock; chunks are in order of time."""

    arrived_s: float
    samples: int


@dataclass(frozen=True, slots=True)
class Underrun:
    """Silence because nothing was there to play: from `at_s` on, for `seconds`, before sample number `sample`."""

    at_s: float
    seconds: float
    sample: int


@dataclass(frozen=True, slots=True)
class Playout:
    """How a stream was played.

    `lead`: (time, seconds of sound in hand) just before and just after each arrival; before an arrival that came late
    it is negative.
    """

    samples: int
    underruns: tuple[Underrun, ...]
    lead: tuple[tuple[float, float], ...]

    @property
    def underrun_s(self) -> float:
        return sum(underrun.seconds for underrun in self.underruns)

    @property
    def least_lead_s(self) -> float | None:
        """The least sound in hand when the next came; None with fewer than two chunks."""
        before = [seconds for _, seconds in self.lead[2::2]]
        return min(before) if before else None


def play(chunks: Sequence[Chunk], sample_rate_hz: int, prebuffer_s: float = 0.0) -> Playout:
    """Play chunks as they came; empty ones are nothing."""
    underruns: list[Underrun] = []
    lead: list[tuple[float, float]] = []
    count, end_s = 0, 0.0  # samples so far, and when the last of them has been played
    first, at_s = 0, 0.0  # since the last gap: the first sample, and when it is played
    for chunk in chunks:
        if not chunk.samples:
            continue
        if not count:
            at_s = end_s = chunk.arrived_s + prebuffer_s
        lead.append((chunk.arrived_s, end_s - chunk.arrived_s))
        if chunk.arrived_s > end_s + _ROUNDING_S:
            underruns.append(Underrun(end_s, chunk.arrived_s - end_s, count))
            first, at_s = count, chunk.arrived_s
        count += chunk.samples
        end_s = at_s + (count - first) / sample_rate_hz
        lead.append((chunk.arrived_s, end_s - chunk.arrived_s))
    return Playout(count, tuple(underruns), tuple(lead))
