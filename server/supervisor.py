"""Keeps a server running: starts Triton, watches it, replaces it when a part of it fails, drains it on a signal.

    starting ──ready──▶ ready ──a signal──▶ draining ──▶ ended
                       fault│ ▲ready                       ▲
                            ▼ │                            │
                        restarting ──a signal, or too many failures in a row

One `TritonServer` is one incarnation. Triton starts no model process again and goes on calling itself ready without it,
so an incarnation with a fault is killed as a whole: its streams end at once, its port closes (that is "not ready" for
every client and balancer), and the next one begins with no stream in it, on the same ports. A front (`server/front.py`)
stands before all incarnations, from the time the first is ready; without a Triton behind it, it answers "unhealthy".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from server.errors import CannotStart
from server.front import Front
from server.launch import TritonServer
from server.memory import MemoryWatch, parse_limit
from server.options import ServerOptions
from server.restart_policy import RestartPolicy
from server.watch import Watch

POLL_S = 0.1
#: How long an end that was asked for waits for a start that has no process yet which could be killed.
ABANDON_S = 2.0


class Supervisor:
    """Runs one server until a signal, or too many failures, end it.

    Args:
        options: what runs.
        log_file: gets what all incarnations write, one after the other.
        asked: the signals that have come; the first drains, a second ends at once.
        say: gets each line for the operator.
        front: has the public port; `options` are its `options`.
    """

    def __init__(
        self,
        options: ServerOptions,
        log_file: Path | None,
        asked: Sequence[int],
        say: Callable[[str], None],
        front: Front | None = None,
    ) -> None:
        self._asked, self._say, self._front = asked, say, front
        self._front_pids: list[int] = []
        self._policy = RestartPolicy(options.restarts)
        self._restarts = 0
        self._server = TritonServer(options, log_file)

    def run(self) -> int:
        """Serve. Returns the exit status: 0 after a drain that lost no stream, else 1."""
        try:
            return self._run()
        finally:
            if self._front is not None:
                self._front.stop()

    def _run(self) -> int:
        problem = self._start() or self._open_front()
        if problem is not None:
            self._say(problem)
            return 1
        while True:
            server = self._server
            ready = time.monotonic()
            again = " again" if self._restarts else ""
            with Watch(server, server.options.stall_timeout_s) as watch:
                if self._front is not None:
                    watch.checks.append(self._front.revive)
                limit = parse_limit(server.options.memory_limit)
                if limit is not None:
                    watch.checks.append(MemoryWatch(limit, server.held_bytes).check)
                self._say(f"ready{again} after {server.start_seconds:.1f} s: {describe(server)}; Ctrl-C stops")
                fault = self._serve(watch)
                if fault is None:
                    return self._drain(watch)
            if not self._replace(fault, server.start_seconds, time.monotonic() - ready):
                return 1

    def _start(self) -> str | None:
        """Start the incarnation; None when it is ready, else why it is not. A signal ends it at once."""
        failures: list[BaseException] = []

        def start() -> None:
            try:
                self._server.start()
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)

        starter = threading.Thread(target=start, name="starter", daemon=True)
        starter.start()
        while starter.is_alive() and not self._asked:
            starter.join(POLL_S)
        if starter.is_alive():
            given_up = time.monotonic() + ABANDON_S
            while starter.is_alive() and time.monotonic() < given_up:
                self._server.kill()
                starter.join(POLL_S)
            return "stopped before it was ready"
        if not failures:
            return None
        if isinstance(failures[0], CannotStart):
            return f"cannot start: {failures[0]}"
        raise failures[0]

    def _open_front(self) -> str | None:
        """Let callers in to the first incarnation, which is ready; None, or why that failed."""
        try:
            if self._front is not None:
                self._front.start(self._server.log_file)
                self._front_pids = self._front.pids
        except CannotStart as error:
            self._server.kill()
            return f"cannot start: {error}"
        return None

    def _serve(self, watch: Watch) -> str | None:
        """Return the first fault, or None at a signal."""
        while not self._asked:
            fault = watch.fault()
            if fault is not None:
                return fault
            if self._front is not None:
                self._front_pids = self._front.pids
            self._server.wait(POLL_S)
        return None

    def _replace(self, fault: str, start_s: float, ready_s: float) -> bool:
        """Kill the incarnation and start others until one is ready; False if there is to be none."""
        while True:
            self._server.kill()  # before the line: what reads it may be slow
            wait_s = self._policy.failed(start_s, ready_s)
            where = f"see {self._server.log_file}"
            if wait_s is None:
                row = f" ({self._policy.in_a_row} failures in a row)" if self._restarts else ""
                self._say(f"{fault}{row}: {where}")
                return False
            self._say(f"{fault}: restarting{f' in {wait_s:g} s' if wait_s else ''}; {where}")
            until = time.monotonic() + wait_s
            while time.monotonic() < until and not self._asked:
                time.sleep(min(POLL_S, wait_s))
            if self._asked:
                self._say("stopped before it was ready")
                return False
            self._restarts += 1
            self._server = TritonServer(self._server.options, self._server.log_file, self._restarts)
            problem = self._start()
            if problem is None:
                return True
            if self._asked:
                self._say(problem)
                return False
            fault, start_s, ready_s = problem, 0.0, 0.0

    def _drain(self, watch: Watch) -> int:
        """Refuse new streams, let running ones end, and end. Returns the exit status."""
        server, complete = self._server, [False]
        server.refuse()  # before it is said
        self._say(f"draining, at most {server.options.exit_timeout_s} s; once more stops now")

        def drain() -> None:
            complete[0] = server.drain()

        drainer = threading.Thread(target=drain, name="drain", daemon=True)
        drainer.start()
        fault = None
        while drainer.is_alive() and fault is None and len(self._asked) < 2:
            drainer.join(POLL_S)
            fault = watch.fault()
        lost = fault is not None or drainer.is_alive() or not complete[0]
        if self._front is not None:
            lost |= self._front.pids != self._front_pids  # it has ended, as by a SIGINT that was sent to every process
            self._front.stop()  # first: it would promise callers another Triton
        server.kill()
        if fault is not None:
            self._say(f"{fault}: see {server.log_file}")
        self._say("stopped; streams that were still running are lost" if lost else "stopped")
        return int(lost)


def describe(server: TritonServer) -> str:
    """Where it listens and logs, in one line."""
    options = server.options
    places = [f"gRPC{' with TLS' if options.tls else ''} on {server.grpc_url}"]
    if server.http_url:
        places.append(f"HTTP on {server.http_url}")
    places.append(f"metrics on {server.metrics_url}")
    if options.grpc_socket:
        places.append("HAProxy in front")
    if server.under_mps:
        places.append("MPS")
    return f"{', '.join(places)}; log in {server.log_file}"
