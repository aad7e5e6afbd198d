"""What is watched of one incarnation of Triton: do its processes live, do they run, do their threads turn, do they
answer. One method each; the first that finds something wrong names the part.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import TracebackType

from server.canary import ASKED, ASKED_IN_ONE, Canary, Pings
from server.launch import TritonServer
from server.metrics import read_metrics
from server.processes import is_alive, is_stopped, model_processes, parent
from server.stalls import Stillness
from serving.heartbeat import HeartbeatReader

#: Triton gives up a request to a model process that was stopped (SIGSTOP, a debugger) for 1 s, and breaks when it goes
#: on (docs/triton.md, "Processes that stand still").
STOPPED_S = 1.0
#: A second in an engine call counts so much: a prompt on a slow CPU, 120 s of speech or the first use of a GPU may
#: rightly take long, and a library that keeps the interpreter's lock then holds up the other threads of its process.
IN_CALL = 1 / 12
#: The end of a model process and of its tritonserver may come in either order, this much apart.
ENDING_S = 0.3

#: What is wrong, in one line that names the part, or None.
Check = Callable[[], str | None]


class Watch:
    """Use as a context manager, around the life of an incarnation that is ready.

    Args:
        server: the incarnation.
        stall_timeout_s: how long a thread or an answer may take; 0: only deaths are watched.

    Attributes:
        checks: asked in this order.
    """

    def __init__(self, server: TritonServer, stall_timeout_s: float) -> None:
        self._server, self._limit_s = server, stall_timeout_s
        self._models = model_processes(server.pid)
        self._parts = {parent(server.pid): "guard", server.pid: "tritonserver"} | self._models | server.helpers
        self._reader = HeartbeatReader(server.heartbeats)
        self._beats = self._reader.read()
        # One that ended since it made its file.
        files = Counter(map(_model, self._beats))
        self._missing = set(files - Counter(self._models.values()))
        self._stillness = Stillness()
        self._closing = contextlib.ExitStack()
        self.checks: list[Check] = [self._ended]
        if stall_timeout_s > 0:
            self.checks += [self._stopped, self._hung, *self._canaries()]

    def fault(self) -> str | None:
        """What is wrong now, or None."""
        self._stillness.look(time.monotonic())
        return next((fault for fault in (check() for check in self.checks) if fault is not None), None)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()
        self.checks.clear()  # they have it, and it has the files of the incarnation: one that is over goes at once

    def _ended(self) -> str | None:
        ended = self._missing | {part for pid, part in self._parts.items() if not is_alive(pid)}
        if not ended:
            return None
        if self._server.wait(ENDING_S):  # it takes its model processes along
            return f"tritonserver has ended (status {self._server.exit_code})"
        if "tritonserver" in ended:
            return "tritonserver has ended"
        return f"a process of {', '.join(sorted(ended))} has ended"

    def _stopped(self) -> str | None:
        for pid, part in self._parts.items():
            stopped = is_stopped(pid)
            still_s = self._stillness.seconds(f"process {pid}", stopped)
            if stopped and still_s > STOPPED_S:
                return f"a process of {part} is stopped"
        return None

    def _hung(self) -> str | None:
        self._beats = self._reader.read()
        for worker, beats in self._beats.items():
            weight = self._weight(worker)
            for thread, beat in beats.items():
                if self._stillness.seconds(f"{worker} {thread}", beat, weight) > self._limit_s:
                    return f"thread {thread} of {worker} has not turned for {self._limit_s:g} s"
        return None

    def _canaries(self) -> list[Check]:
        """What a client would see; after `_hung`, which has read the beats."""
        options, server = self._server.options, self._server
        if options.tls is not None and options.grpc_socket is None:
            # The launcher has no client certificate, and there is no name that the server's is surely for.
            return [self._canary("tritonserver", partial(read_metrics, options.metrics_host, options.metrics_port))]
        pings = Pings(options.triton_url, server.secret)
        self._closing.callback(pings.close)
        asked = ASKED_IN_ONE if options.one_process else ASKED
        return [self._canary(model, partial(pings.ask, model)) for model in asked]

    def _canary(self, part: str, ask: Callable[[], object]) -> Check:
        canary = Canary(ask)
        self._closing.callback(canary.close)

        def unanswered() -> str | None:
            weight = min((self._weight(worker) for worker in self._beats if _model(worker) == part), default=1.0)
            still_s = self._stillness.seconds(f"canary {part}", canary.sign, weight)
            if canary.waiting and still_s > self._limit_s:
                return f"{part} has not answered for {self._limit_s:g} s"
            return None

        return unanswered

    def _weight(self, worker: str) -> float:
        """What a second without a sign of life of this process counts."""
        return IN_CALL if any(beat.calling for beat in self._beats[worker].values()) else 1.0


def _model(worker: str) -> str:
    """Of a model instance: MODEL_0_0."""
    return worker.rsplit("_", 2)[0]
