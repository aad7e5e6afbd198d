"""Everything measured in a run, as one object that merges: each process keeps one, the master adds them up.

Bounded: histograms and counts grow with scenarios, phases and seconds, not with streams; single streams are kept up
to a limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from loadtest.group import Group
from loadtest.record import StreamRecord
from loadtest.window import Window

#: Single streams kept for `streams.csv`, curves kept for the picture, kinds of errors told apart.
MAX_STREAMS, MAX_CURVES, MAX_ERRORS = 50_000, 40, 50
#: A scenario whose reader is slow on purpose: its figures say nothing about the server.
SLOW_READER = "slow_reader"
_NUMBERS = re.compile(r"\d+(\.\d+)?")


@dataclass(slots=True)
class Tally:
    """`warm_up` counts streams that were measured and left out of every figure but the curves over time."""

    scenarios: dict[str, Group] = field(default_factory=dict)
    phases: dict[str, Group] = field(default_factory=dict)
    windows: dict[int, Window] = field(default_factory=dict)
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
            self.streams.append(stream)
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

    def merge(self, other: Tally) -> None:
        for mine, theirs in ((self.scenarios, other.scenarios), (self.phases, other.phases)):
            for name, group in theirs.items():
                mine.setdefault(name, Group()).merge(group)
        for second, window in other.windows.items():
            self.windows.setdefault(second, Window()).merge(window)
        for kind, count in other.errors.items():
            self._count_error(kind, count)
        room = MAX_STREAMS - len(self.streams)
        self.streams += other.streams[:room]
        self.streams_left_out += other.streams_left_out + max(0, len(other.streams) - room)
        self.curves += other.curves[: MAX_CURVES - len(self.curves)]
        self.warm_up += other.warm_up

    def to_dict(self) -> dict[str, Any]:
        """Plain data with text keys: what a worker sends to its master."""
        return {
            "scenarios": {name: group.to_dict() for name, group in self.scenarios.items()},
            "phases": {name: group.to_dict() for name, group in self.phases.items()},
            "windows": {str(second): window.to_dict() for second, window in self.windows.items()},
            "errors": dict(self.errors),
            "streams": [_without_curves(stream) for stream in self.streams],
            "streams_left_out": self.streams_left_out,
            "curves": [asdict(stream) for stream in self.curves],
            "warm_up": self.warm_up,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tally:
        return cls(
            scenarios={name: Group.from_dict(group) for name, group in data["scenarios"].items()},
            phases={name: Group.from_dict(group) for name, group in data["phases"].items()},
            windows={int(second): Window.from_dict(window) for second, window in data["windows"].items()},
            errors=dict(data["errors"]),
            streams=[StreamRecord(**stream) for stream in data["streams"]],
            streams_left_out=data["streams_left_out"],
            curves=[StreamRecord(**stream) for stream in data["curves"]],
            warm_up=data["warm_up"],
        )

    def _window(self, at_s: float) -> Window:
        return self.windows.setdefault(int(at_s), Window())

    def _count_error(self, kind: str, count: int) -> None:
        kind = kind if kind in self.errors or len(self.errors) < MAX_ERRORS else "other kinds"
        self.errors[kind] = self.errors.get(kind, 0) + count


def _without_curves(stream: StreamRecord) -> dict[str, Any]:
    return asdict(replace(stream, gaps_ms=(), lead=()))
