"""A simulated speech server for the tests of search and model: its capacity can be computed, or counted."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

from loadtest.capacity.model import Observation


@dataclass(frozen=True)
class Simulated:
    """Shares itself between up to `slots` streams; each one more adds a fixed time to everyone's second of sound."""

    alone_s: float = 0.1
    more_s: float = 0.09
    first_s: float = 0.08
    first_more_s: float = 0.04
    spread: float = 0.1
    sound_s: float = 6.0
    slots: int = 8
    queue: int = 16

    def run(self, rate_hz: float, streams: int, seed: int) -> tuple[list[Observation], int]:
        """`streams` Poisson arrivals: what each saw, and how many were refused. Event by event."""
        random_ = random.Random(seed)
        seen: list[Observation] = []
        refused, now_s, area_s = 0, 0.0, 0.0
        waiting: deque[tuple[float, float]] = deque()  # (arrived, sound)
        running: list[list[float]] = []  # [sound left, sound, started, arrived, area at start, met]
        next_s = random_.expovariate(rate_hz)
        left = streams
        while left or running:
            each = 1.0 / self._per_sound(len(running)) if running else 0.0  # seconds of sound per second, each
            first_end = min((now_s + stream[0] / each for stream in running), default=math.inf)
            then_s = min(first_end, next_s if left else math.inf)
            for stream in running:
                stream[0] -= each * (then_s - now_s)
            area_s += len(running) * (then_s - now_s)
            now_s = then_s
            if left and now_s == next_s:
                left -= 1
                next_s = now_s + random_.expovariate(rate_hz)
                sound_s = random_.expovariate(1 / self.sound_s)
                if len(running) < self.slots:
                    running.append([sound_s, sound_s, now_s, now_s, area_s, len(running) + 1])
                elif len(waiting) < self.queue:
                    waiting.append((now_s, sound_s))
                else:
                    refused += 1
                continue
            done = min(running, key=lambda stream: stream[0])
            running.remove(done)
            seen.append(self._observed(done, now_s, area_s, random_))
            if waiting:
                arrived_s, sound_s = waiting.popleft()
                running.append([sound_s, sound_s, now_s, arrived_s, area_s, self.slots + 1])
        return seen, refused

    def _per_sound(self, running: int) -> float:
        return self.alone_s + self.more_s * (running - 1)

    def _observed(self, stream: list[float], now_s: float, area_s: float, random_: random.Random) -> Observation:
        _, sound_s, started_s, arrived_s, area_then_s, met = stream
        busy = min(met, self.slots)
        first_s = (self.first_s + self.first_more_s * (busy - 1)) * math.exp(random_.gauss(0, self.spread))
        life_s = max(now_s - started_s, 1e-9)
        mean = (area_s - area_then_s) / life_s
        return Observation(int(met), mean, started_s - arrived_s + first_s, life_s, sound_s)
