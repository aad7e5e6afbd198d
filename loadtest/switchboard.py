"""The streams of one generator process: starts calls, counts how many run, ends them when the run is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import gevent
from gevent.pool import Group

from loadtest.clock import now_s
from loadtest.options import Settings
from loadtest.record import StreamRecord
from loadtest.shapes import WARM_UP
from loadtest.stream import Call, is_unreachable
from loadtest.tally import Tally
from loadtest.turns import Turn
from vita_audio.contract.errors import VitaError
from vita_client import Client

#: How long an abandoned stream may take to end.
_ABANDON_S = 5.0
Report = Callable[[StreamRecord, VitaError | None], None]


class GeneratorFull(VitaError):
    """This process holds as many streams as it may: the offered load is more than the run was set up for."""


class Switchboard:
    """All calls go through here. Runs in one gevent thread: nothing in it may be interrupted between two waits.

    Args:
        on_end: told of every stream when it is over.
    """

    def __init__(self, client: Client, settings: Settings, start_s: float, on_end: Report) -> None:
        self._client, self._settings, self._start_s, self._on_end = client, settings, start_s, on_end
        self._plan = settings.plan
        self._calls: set[Call] = set()
        self._greenlets = Group()
        self._area_s, self._changed_s = 0.0, start_s  # integral of the number of running streams
        self._open = True
        self.tally = Tally()

    @property
    def running(self) -> int:
        return len(self._calls)

    def launch(self, turn: Turn, intended_s: float) -> gevent.Greenlet | None:
        """Start a call in the background; None once the run is over."""
        if not self._open:
            return None
        return self._greenlets.spawn(self._run, turn, intended_s)

    def take_tally(self) -> Tally:
        """What was measured since the last time."""
        taken, self.tally = self.tally, Tally()
        return taken

    def drain(self, limit_s: float) -> None:
        """No new calls; wait for those that run, and end what is left after `limit_s` as unfinished."""
        self._open = False
        self._greenlets.join(timeout=limit_s)
        for call in list(self._calls):
            call.abandon()
        self._greenlets.join(timeout=_ABANDON_S)

    def _run(self, turn: Turn, intended_s: float) -> None:
        start_s = intended_s - self._start_s
        phase = self._plan.at(start_s)
        blank = StreamRecord(
            scenario=turn.scenario,
            seed=turn.request.seed or 0,
            start_s=start_s,
            phase=phase.name if phase else self._plan.phases[-1].name,
            warm_up=phase is not None and phase.name == WARM_UP,
            outcome="failed",
        )
        self.tally.sent(now_s() - self._start_s)
        if self.running >= self._settings.max_streams:
            full = GeneratorFull(
                f"this generator process holds {self.running} streams, the limit; raise --max-streams, or add workers"
            )
            delay_ms = (now_s() - intended_s) * 1e3
            error = f"{type(full).__name__}: {full}"
            return self._end(replace(blank, error=error, start_delay_ms=delay_ms, total_ms=delay_ms), full)
        call = Call(turn, intended_s)
        self._count_area()
        self._calls.add(call)
        running, area_s, begun_s = self.running, self._area_s, now_s()
        try:
            record, fault = call.run(self._client, self._settings.timeout_s, self._settings.prebuffer_s, blank)
        finally:
            self._count_area()
            self._calls.discard(call)
        mean = (self._area_s - area_s) / max(now_s() - begun_s, 1e-9)
        self._end(replace(record, running=running, mean_running=mean), fault)

    def _end(self, record: StreamRecord, error: VitaError | None) -> None:
        self.tally.over(record, now_s() - self._start_s, is_unreachable(error))
        self._on_end(record, error)

    def _count_area(self) -> None:
        moment_s = now_s()
        self._area_s += self.running * (moment_s - self._changed_s)
        self._changed_s = moment_s
