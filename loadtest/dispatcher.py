"""The streams of one generator process: starts requests, counts how many run, ends them when the run is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import gevent
from gevent.event import Event as Signal
from gevent.pool import Group

from loadtest.clock import now_s
from loadtest.driver import Drive, Record, Sender
from loadtest.errors import LoadTestError
from loadtest.options import Settings
from loadtest.record import StreamRecord
from loadtest.shapes import WARM_UP
from loadtest.talk import Talk
from loadtest.tally import Counter
from loadtest.workload import UserRequest, UserTalk
from vita_audio.contract.errors import VitaError
from vita_client import Client, Pcm, ServerUnavailable, StatusUpdate
from vita_client.events import Event

#: How long a cancelled stream may take to end.
_CANCEL_S = 5.0
Report = Callable[[StreamRecord, VitaError | None], None]


class UserStream:
    """A user's request on its way: it may be cut short a while after its first sound, and read slowly."""

    def __init__(self, planned: UserRequest, timeout_s: float) -> None:
        self._planned = planned
        self._drive = Drive(planned.request, timeout_s, self._on_event)
        self._barge_in: threading.Timer | None = None
        self.unfinished = False

    @property
    def failure(self) -> VitaError | None:
        return self._drive.failure

    def run(self, client: Sender, sent_s: float | None) -> Record:
        try:
            return self._drive.run(client, sent_s)
        finally:
            if self._barge_in is not None:
                self._barge_in.cancel()

    def end_with_the_run(self) -> None:
        self.unfinished = True
        self._drive.cancel()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Pcm) and self._barge_in is None and self._planned.barge_in_s is not None:
            self._barge_in = threading.Timer(self._planned.barge_in_s, self._drive.cancel)
            self._barge_in.start()
        elif isinstance(event, StatusUpdate) and self._planned.read_delay_s and not event.status.final:
            time.sleep(self._planned.read_delay_s)


class Dispatcher:
    """All streams of a process start here. Runs in one gevent thread: nothing is interrupted between two waits.

    Args:
        counter: takes every stream when it is sent and when it is over.
        on_end: called with every stream when it is over.
    """

    def __init__(self, client: Client, settings: Settings, start_s: float, counter: Counter, on_end: Report) -> None:
        self._client, self._settings, self._start_s = client, settings, start_s
        self._counter, self._on_end = counter, on_end
        self._plan = settings.plan
        self._running: set[UserStream] = set()
        self._greenlets = Group()
        self._closing = Signal()

    def launch(self, planned: UserRequest | UserTalk, intended_s: float) -> gevent.Greenlet | None:
        """Start a stream, or a conversation, in the background; None once the run is over."""
        if self._closing.is_set():
            return None
        if isinstance(planned, UserTalk):
            return self._greenlets.spawn(self._converse, planned, intended_s)
        return self._greenlets.spawn(self._run, planned, intended_s)

    def drain(self, limit_s: float) -> None:
        """No new streams; wait for those that run, and end what is left after `limit_s` as unfinished."""
        self._closing.set()
        self._greenlets.join(timeout=limit_s)
        for stream in list(self._running):
            stream.end_with_the_run()
        self._greenlets.join(timeout=_CANCEL_S)

    def _converse(self, planned: UserTalk, intended_s: float) -> None:
        """All turns, unless one fails (the user hangs up) or the run is over."""
        talk = Talk(self._client, self._settings.timeout_s, self._settings.prebuffer_s)
        begin_s = intended_s
        for number, (turn, think_s) in enumerate(zip(planned.turns, planned.think_s, strict=True), 1):
            spoken = talk.speak(turn.request, begin_s, self._closing)
            if spoken is None:
                return
            stream = self._run(turn, spoken[0], talk, number, spoken[1])
            if stream.error or self._closing.is_set():
                return
            begin_s = talk.listen(stream, turn.barge_in_s, think_s)

    def _run(
        self,
        planned: UserRequest,
        intended_s: float,
        sender: Sender | None = None,
        turn: int = 0,
        sent_s: float | None = None,
    ) -> StreamRecord:
        start_s = intended_s - self._start_s
        phase = self._plan.at(start_s)
        blank = StreamRecord(
            scenario=planned.scenario,
            seed=planned.seed,
            start_s=start_s,
            phase=phase.name if phase else self._plan.phases[-1].name,
            warm_up=phase is not None and phase.name == WARM_UP,
            outcome="failed",
            turn=turn,
        )
        self._counter.sent(now_s() - self._start_s)
        if len(self._running) >= self._settings.max_streams:
            full = LoadTestError(
                f"this generator process holds {len(self._running)} streams, the limit; raise --max-streams, or add "
                "workers", code="generator_full",
            )  # fmt: skip
            unsent = Record(sent_s or now_s(), now_s(), code=full.code, error=f"{full.code}: {full}")
            return self._end(blank.measured(unsent, intended_s, 0.0, False), full)
        stream = UserStream(planned, self._settings.timeout_s)
        self._running.add(stream)
        try:
            record = stream.run(sender or self._client, sent_s)
        finally:
            self._running.discard(stream)
        measured = blank.measured(record, intended_s, self._settings.prebuffer_s, stream.unfinished)
        return self._end(measured, stream.failure)

    def _end(self, record: StreamRecord, error: VitaError | None) -> StreamRecord:
        # No server, or one that went away in the middle (`StreamBroken` is a kind of `ServerUnavailable`).
        unreachable = isinstance(error, ServerUnavailable) and record.outcome != "rejected"
        self._counter.over(record, now_s() - self._start_s, unreachable)
        self._on_end(record, error)
        return record
