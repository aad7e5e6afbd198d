"""What callers and a balancer see of a server while something happens to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.closed_loop import Callers, request_for
from loadtest.clock import now_s
from loadtest.driver import DONE, Drive, Record
from vita_client import Client
from vita_client.channel import Connection
from vita_client.request import Request

#: One fewer than the servers have slots: the last one is for the probes.
CALLERS = 3
#: A stream that has not ended by then hangs.
STREAM_TIMEOUT_S = 20.0
_PROBE_TIMEOUT_S, _PROBE_PAUSE_S, _PROBE_TOKENS = 10.0, 0.1, 12
_HEALTH_TIMEOUT_S, _HEALTH_PAUSE_S = 1.0, 0.1
_TOKENS = 150
#: Callers who are refused ask again, but do not take the cores from a server that starts.
_PAUSE_S = 0.3


def load_request(caller: int, number: int) -> Request:
    """Two of three callers have sentences read aloud, the third asks a spoken question."""
    task = "chat" if caller % 3 == 2 else "tts"
    return request_for(task, None, 10_000 * caller + number, _TOKENS)


@dataclass(slots=True)
class Seen:
    """Everything that was seen. Moments on `loadtest.clock`.

    Args:
        streams: of the callers, those that have ended. `probes`: short ones, sent one after the other all the time.
        readiness: (moment, ready) at each change, as a balancer asks for it; false also where no answer comes.
    """

    fault_s: float = 0.0
    streams: list[Record] = field(default_factory=list)
    probes: list[Record] = field(default_factory=list)
    readiness: list[tuple[float, bool]] = field(default_factory=list)

    @property
    def running(self) -> list[Record]:
        """Streams and probes in flight at the fault."""
        return [each for each in (*self.streams, *self.probes) if each.sent_s < self.fault_s <= each.end_s]

    @property
    def later(self) -> list[Record]:
        """Streams and probes sent after the fault."""
        return [each for each in (*self.streams, *self.probes) if each.sent_s >= self.fault_s]

    @property
    def failed(self) -> int:
        """Streams in flight at the fault that ended with an error."""
        return sum(bool(each.error) for each in self.running)

    @property
    def not_ready_s(self) -> float | None:
        """From the fault to the first sign that the server is not ready."""
        return next((at_s - self.fault_s for at_s, ready in self.readiness if not ready and at_s >= self.fault_s), None)

    @property
    def ended_s(self) -> float | None:
        """From the fault to the end of the last stream that it cost; None when it cost none."""
        return max((each.end_s - self.fault_s for each in self.running if each.error), default=None)

    @property
    def harmless(self) -> bool:
        """No caller noticed anything."""
        return self.not_ready_s is None and not any(each.error for each in self.running + self.later)

    @property
    def back_s(self) -> float | None:
        """From the fault to the first answered probe that was sent when the server was ready again; None while it is
        not, and where nothing was amiss."""
        failures = [each.end_s for each in self.later if each.error]
        if self.not_ready_s is not None:
            at_s, ready = self.readiness[-1]
            if not ready:
                return None
        elif failures:
            at_s = failures[0]
        elif self.ended_s is not None:  # over before the next health check
            at_s = self.fault_s + self.ended_s
        else:
            return None
        return next((e.end_s - self.fault_s for e in self.probes if e.sent_s >= at_s and e.code == DONE), None)

    @property
    def codes(self) -> list[str]:
        """How all streams ended that the fault could touch."""
        return [each.code for each in self.running + self.later]

    @property
    def errors(self) -> list[str]:
        return [each.error for each in self.running + self.later if each.error]


class Watch:
    """Callers, probes and a balancer's health check on one server, from entering to leaving. Leaving waits for the end
    of every stream.

    Args:
        callers: closed-loop callers.
        patience: times the deadlines of streams.
    """

    def __init__(self, url: str, callers: int = CALLERS, patience: float = 1.0) -> None:
        self._url, self._patience = url, patience
        self._callers = Callers(url, callers, self._request, timeout_s=STREAM_TIMEOUT_S * patience, pause_s=_PAUSE_S)
        self._sent = 0
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._seen = Seen()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._probe, self._ask_health)]
        self._fault_s, self._over = now_s(), (0, 0)

    @property
    def sent(self) -> int:
        """Requests that callers have sent; after leaving it is the number of streams."""
        return self._sent

    def mark(self) -> float:
        """The fault happens now."""
        self._over = (len(self._callers.records), len(self._seen.probes))
        self._fault_s = now_s()
        return self._fault_s

    def seen(self) -> Seen:
        """What was seen from the mark until now; streams that were over before it are left out."""
        streams, probes = self._over
        watched = self._seen
        return Seen(self._fault_s, self._callers.records[streams:], watched.probes[probes:], list(watched.readiness))

    @property
    def streams(self) -> list[Record]:
        """Of the callers: all that have ended."""
        return self._callers.records

    @property
    def probes(self) -> list[Record]:
        """All that have ended."""
        return list(self._seen.probes)

    def until(self, condition: Callable[[Seen], bool], least_s: float, most_s: float) -> bool:
        """Watch on until the condition holds, for at least and at most so long after the mark; False when it does
        not."""
        while now_s() - self._fault_s < most_s:
            if now_s() - self._fault_s >= least_s and condition(self.seen()):
                return True
            time.sleep(0.05)
        return condition(self.seen())

    def wait_running(self, most_s: float = 20.0) -> None:
        """Return when the load is a second old and a probe was answered."""
        self.until(lambda seen: any(each.code == DONE for each in seen.probes), 1.0, most_s)

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        self._callers.__enter__()
        return self

    def __exit__(self, *unused: object) -> None:
        self._closing.set()
        self._callers.__exit__()
        for thread in self._threads:
            thread.join()

    def _request(self, caller: int, number: int) -> Request:
        with self._lock:
            self._sent += 1
        return load_request(caller, number)

    def _probe(self) -> None:
        number = 0
        with Client(self._url) as client:
            while not self._closing.wait(_PROBE_PAUSE_S):
                number += 1
                drive = Drive(request_for("tts", None, number, _PROBE_TOKENS), _PROBE_TIMEOUT_S * self._patience)
                self._seen.probes.append(drive.run(client))

    def _ask_health(self) -> None:
        """On a connection of its own each time: one that was lost would be tried again only a while later."""
        while not self._closing.wait(_HEALTH_PAUSE_S):
            ready = False
            with (
                contextlib.suppress(Exception),
                Client(connection=Connection(self._url, connect_timeout_s=_HEALTH_TIMEOUT_S)) as client,
            ):
                ready = client.health().ready
            if not self._seen.readiness or self._seen.readiness[-1][1] != ready:
                self._seen.readiness.append((now_s(), ready))
