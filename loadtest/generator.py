"""Whether the generator itself kept up: its share of a core, and how late its event loop was."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import gevent
import psutil

from loadtest.histogram import Histogram

#: Above these the generator, not the server, may be what is measured.
MAX_CPU_SHARE, MAX_LAG_P99_MS = 0.8, 20.0
_TICK_S, _TICKS_PER_SHARE = 0.1, 10


@dataclass(slots=True)
class GeneratorLoad:
    """One generator process. Shares are of one core; `lag`: how much later than asked a sleep of 0.1 s ended."""

    cpu_share: float = 0.0
    cpu_share_max: float = 0.0
    machine_cpu_share: float = 0.0
    lag: Histogram = field(default_factory=Histogram)

    @property
    def kept_up(self) -> bool:
        return self.cpu_share_max <= MAX_CPU_SHARE and (self.lag.percentile(99) or 0.0) <= MAX_LAG_P99_MS

    def to_dict(self) -> dict[str, Any]:
        return {
            "cpu_share": self.cpu_share,
            "cpu_share_max": self.cpu_share_max,
            "machine_cpu_share": self.machine_cpu_share,
            "lag": self.lag.to_text(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GeneratorLoad:
        return cls(**{**data, "lag": Histogram.from_text(data["lag"])})


class GeneratorWatch:
    """Measures this process in the background until `stop()`; `load` is what was seen so far."""

    def __init__(self) -> None:
        self.load = GeneratorLoad()
        self._greenlet = gevent.spawn(self._watch)

    def stop(self) -> None:
        self._greenlet.kill()

    def _watch(self) -> None:
        psutil.cpu_percent()
        begun = last = (time.perf_counter(), time.process_time())
        ticks = 0
        while True:
            asked_s = time.perf_counter() + _TICK_S
            gevent.sleep(_TICK_S)
            self.load.lag.record((time.perf_counter() - asked_s) * 1e3)
            ticks += 1
            if ticks % _TICKS_PER_SHARE == 0:
                now = (time.perf_counter(), time.process_time())
                self.load.cpu_share = (now[1] - begun[1]) / (now[0] - begun[0])
                self.load.cpu_share_max = max(self.load.cpu_share_max, (now[1] - last[1]) / (now[0] - last[0]))
                seen = ticks // _TICKS_PER_SHARE
                self.load.machine_cpu_share += (psutil.cpu_percent() / 100 - self.load.machine_cpu_share) / seen
                last = now
