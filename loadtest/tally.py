"""Everything measured in a run: a lone process counts its streams itself, a worker sends them to its master.

Bounded: histograms and counts grow with scenarios and phases, not with streams; single streams and windows of time are
kept up to a limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from loadtest.group import Group
from loadtest.record import StreamRecord
from loadtest.window import Window

#: Single streams kept for `streams.csv`, curves kept for the picture, kinds of errors distinguished.
MAX_STREAMS, MAX_CURVES, MAX_ERRORS = 50_000, 40, 50
#: Windows of time: a longer run has wider ones. 21 KiB each.
MAX_WINDOWS = 3600
#: Later turns of conversations are counted as this one.
LAST_TURN = 10
#: A scenario whose reader is slow on purpose: its figures say nothing about the server.
SLOW_READER = "slow_reader"
_NUMBERS = re.compile(r"\d+(\.\d+)?")


class Counter(Protocol):
    """Where a process puts its streams: seconds count from the beginning of the run."""

    def sent(self, at_s: float) -> None: ...

    def over(self, stream: StreamRecord, at_s: float, unreachable: bool) -> None: ...


@dataclass(slots=True)
class Tally:
    """`warm_up` counts streams that were measured and left out of every figure but the curves over time.

    `windows`: by the second they begin with, each `window_s` long.
    """

    scenarios: dict[str, Group] = field(default_factory=dict)
    phases: dict[str, Group] = field(default_factory=dict)
    turns: dict[int, Group] = field(default_factory=dict)
    windows: dict[int, Window] = field(default_factory=dict)
    window_s: int = 1
    errors: dict[str, int] = field(default_factory=dict)
    streams: list[StreamRecord] = field(default_factory=list)
    streams_left_out: int = 0
    curves: list[StreamRecord] = field(default_factory=list)
    warm_up: int = 0

    def sent(self, at_s: float) -> None:
        self._window(at_s).sent += 1

    def over(self, stream: StreamRecord, at_s: float, unreachable: bool) -> None:
        """Take in one stream that ended at `at_s` (seconds since the run began)."""
        end = self._window(at_s)
        end.over += 1
        end.unreachable += unreachable
        self._add_to_window(stream)
        if stream.error:
            self._count_error(_NUMBERS.sub("N", stream.error), 1)
        if len(self.streams) < MAX_STREAMS:
            self.streams.append(replace(stream, gaps_ms=(), lead=()))
        else:
            self.streams_left_out += 1
        if stream.lead and len(self.curves) < MAX_CURVES:
            self.curves.append(stream)
        if stream.warm_up:
            self.warm_up += 1
        else:
            self.scenarios.setdefault(stream.scenario, Group()).add(stream)
            if stream.scenario != SLOW_READER:
                self.phases.setdefault(stream.phase, Group()).add(stream)
            if stream.turn:
                self.turns.setdefault(min(stream.turn, LAST_TURN), Group()).add(stream)

    def _add_to_window(self, stream: StreamRecord) -> None:
        start = self._window(stream.start_s)
        start.offered += 1
        if stream.scenario == SLOW_READER:
            return
        start.lost += stream.outcome in ("rejected", "failed", "unfinished")
        start.spoken += stream.first_pcm_ms is not None
        start.broken += stream.underruns > 0
        if stream.ttfa_ms is not None:
            start.ttfa.record(stream.ttfa_ms)

    def total(self) -> Group:
        """All scenarios but the slow reader, warm-up left out."""
        group = Group()
        for name, scenario in self.scenarios.items():
            if name != SLOW_READER:
                group.merge(scenario)
        return group

    def take_in(self, message: Mapping[str, Any]) -> None:
        """Count what `Outbox.take` of a worker gave."""
        for at_s in message["sent"]:
            self.sent(at_s)
        for stream, at_s, unreachable in message["over"]:
            self.over(StreamRecord(**stream), at_s, unreachable)

    def last_windows(self, second: int, seconds: int) -> list[Window]:
        """Those in which the `seconds` before `second` are."""
        begins = {s - s % self.window_s for s in range(second - seconds, second)}
        return [self.windows[begin] for begin in begins if begin in self.windows]

    def _window(self, at_s: float) -> Window:
        while at_s >= MAX_WINDOWS * self.window_s:
            self.window_s *= 2
            windows, self.windows = self.windows, {}
            for begin, window in windows.items():
                self._window(begin).merge(window)
        begin = int(at_s) // self.window_s * self.window_s
        if begin not in self.windows:
            self.windows[begin] = Window()
        return self.windows[begin]

    def _count_error(self, kind: str, count: int) -> None:
        kind = kind if kind in self.errors or len(self.errors) < MAX_ERRORS else "other kinds"
        self.errors[kind] = self.errors.get(kind, 0) + count


class Outbox:
    """The streams of a worker since its last message, as plain data."""

    def __init__(self) -> None:
        self._sent: list[float] = []
        self._over: list[tuple[dict[str, Any], float, bool]] = []
        self._curves = 0

    def sent(self, at_s: float) -> None:
        self._sent.append(at_s)

    def over(self, stream: StreamRecord, at_s: float, unreachable: bool) -> None:
        self._curves += bool(stream.lead)
        kept = stream if self._curves <= MAX_CURVES else replace(stream, lead=())
        self._over.append((asdict(kept), at_s, unreachable))

    def take(self) -> dict[str, Any]:
        """Everything, once."""
        message = {"sent": self._sent, "over": self._over}
        self._sent, self._over = [], []
        return message
