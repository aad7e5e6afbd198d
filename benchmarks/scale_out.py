"""Two servers behind HAProxy under load: how streams spread, what a killed server costs, and a drained restart.

    python -m benchmarks.scale_out --engines engines/cpu --out benchmarks/results/scale_out.json

Real Triton servers, the balancer of `deploy/haproxy/`, closed-loop callers, all on loopback, in at most ten minutes.
Server `a` is killed (SIGKILL) in the middle of its streams and started again; then `b` is drained and restarted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.balancer import Balancer, BalancerError
from server.errors import CannotStart
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_audio.machine import describe_machine
from vita_client import Client

#: Both servers fit on a small machine; what does not fit waits in their queues.
SLOTS, QUEUE = 8, 32
MAX_PHASE_S, MAX_CALLERS = 120.0, 64
STREAM_TIMEOUT_S = 60.0
POLL_S = 0.05
#: A caller that was turned away does not come back within the same instant.
PAUSE_AFTER_ERROR_S = 0.05


@dataclass(frozen=True, slots=True)
class Call:
    """One stream as its caller saw it; times in seconds of `time.monotonic`. `error` is "" when it ended well."""

    start: float
    end: float
    sounded: bool  # it had brought something before it ended
    ttfa_ms: float | None
    error: str


class Callers:
    """Closed-loop callers on their own connections; a context manager. `calls` grows while they run."""

    def __init__(self, url: str, number: int, max_tokens: int) -> None:
        self._url, self._number, self._max_tokens = url, number, max_tokens
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._threads: list[threading.Thread] = []

    @property
    def calls(self) -> list[Call]:
        """Those that have ended."""
        with self._lock:
            return list(self._calls)

    def __enter__(self) -> Callers:
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(self._number)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        """No new streams; those that run may end."""
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        turn = 0
        with Client(self._url) as client:
            while not self._closing.is_set():
                call = self._call(client, seed=1000 * number + turn)
                turn += 1
                with self._lock:
                    self._calls.append(call)
                if call.error:
                    self._closing.wait(PAUSE_AFTER_ERROR_S)

    def _call(self, client: Client, seed: int) -> Call:
        start, error = time.monotonic(), ""
        stream = client.stream(
            "Read this sentence aloud, please.",
            task="tts",
            max_tokens=self._max_tokens,
            temperature=1.0,
            seed=seed,
            timeout_s=STREAM_TIMEOUT_S,
        )
        sounded = False
        try:
            with stream:
                for _ in stream:
                    sounded = True
        except VitaError as failure:
            error = f"{type(failure).__name__}: {failure}"
        return Call(start, time.monotonic(), sounded, stream.metrics.ttfa_ms, error)


@dataclass(slots=True)
class Rehearsal:
    """The two servers, by the balancer's names, and the balancer."""

    servers: dict[str, TritonServer]
    balancer: Balancer
    phase_s: float

    def spread(self, callers: Callers) -> dict[str, Any]:
        """A quiet phase: how many streams each server got, and how fast they were."""
        before = {name: int(row["stot"]) for name, row in self.balancer.servers().items()}
        begin = time.monotonic()
        time.sleep(self.phase_s)
        after = self.balancer.servers()
        calls = [call for call in callers.calls if call.start >= begin]
        return {
            "streams": {name: int(after[name]["stot"]) - before[name] for name in self.servers},
            "ended": len(calls),
            "failed": sum(bool(call.error) for call in calls),
            **_ttfa(calls),
        }

    def kill(self, callers: Callers) -> dict[str, Any]:
        """Server `a` dies at a moment when both have streams; it is started again at the end of the phase."""
        self._wait_until(lambda: all(self.balancer.streams(name) for name in self.servers))
        on = {name: self.balancer.streams(name) for name in self.servers}
        killed = time.monotonic()
        self.servers["a"].kill()
        self.balancer.wait_for("a", "DOWN")
        noticed = time.monotonic()
        time.sleep(self.phase_s)
        begin = time.monotonic()
        down = [call for call in callers.calls if killed <= call.end < begin]
        begun_before = [call for call in down if call.start < killed]
        failed = [call for call in begun_before if call.error]
        between = [call for call in down if killed <= call.start < noticed]
        begun_after = [call for call in down if call.start >= noticed]
        self.restart("a")
        return {
            "streams_before": on,
            "failed": len(failed),
            "failed_after_ms": [round((call.end - killed) * 1e3, 1) for call in failed],
            "unharmed": len(begun_before) - len(failed),
            "noticed_ms": round((noticed - killed) * 1e3, 1),
            "new_before_notice": len(between),
            "new_before_notice_failed": sum(bool(call.error) for call in between),
            "new": len(begun_after),
            "new_failed": sum(bool(call.error) for call in begun_after),
            "errors": dict(Counter(call.error for call in down if call.error)),
            "back_after_s": round(time.monotonic() - begin, 1),
            **_ttfa(begun_after),
        }

    def drained_restart(self, callers: Callers) -> dict[str, Any]:
        """Server `b` gets no new streams, ends those it has, is stopped, started and taken back."""
        self._wait_until(lambda: self.balancer.streams("b") > 0)
        begin = time.monotonic()
        had = self.balancer.streams("b")
        self.balancer.set_state("b", "drain")
        self._wait_until(lambda: self.balancer.streams("b") == 0)
        drained_s = time.monotonic() - begin
        self.servers["b"].stop()
        self.restart("b")
        time.sleep(self.phase_s)
        calls = [call for call in callers.calls if call.end >= begin]
        return {
            "streams_when_drained": had,
            "drained_s": round(drained_s, 1),
            "ended": len(calls),
            "failed": sum(bool(call.error) for call in calls),
            "errors": dict(Counter(call.error for call in calls if call.error)),
        }

    def restart(self, name: str) -> None:
        """Start a stopped server on its old ports and wait until the balancer uses it."""
        self.servers[name] = TritonServer(self.servers[name].options).start()
        self.balancer.set_state(name, "ready")
        self.balancer.wait_for(name, "UP")

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STREAM_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise BalancerError(f"the streams of the servers did not change within {STREAM_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


def rehearse(options: ServerOptions, callers: int, phase_s: float, max_tokens: int) -> dict[str, Any]:
    """All phases, one after the other, under one load.

    Raises:
        CannotStart, BalancerError: a server or the balancer did not do its part.
    """
    servers: dict[str, TritonServer] = {}
    try:
        for name in ("a", "b"):
            servers[name] = TritonServer(options).start()
        urls = [server.grpc_url for server in servers.values()]
        with Balancer(urls) as balancer:
            for name in servers:
                balancer.wait_for(name, "UP")
            rehearsal = Rehearsal(servers, balancer, phase_s)
            with Callers(balancer.url, callers, max_tokens) as load:
                return {
                    "spread": rehearsal.spread(load),
                    "kill": rehearsal.kill(load),
                    "drained_restart": rehearsal.drained_restart(load),
                }
    finally:
        for server in servers.values():
            server.stop()


def _ttfa(calls: Sequence[Call]) -> dict[str, float]:
    """Percentiles of those that sounded."""
    times = [call.ttfa_ms for call in calls if call.ttfa_ms is not None]
    return {f"ttfa_p{q}_ms": round(float(np.percentile(times, q)), 1) for q in (50, 95)} if times else {}


def table(result: dict[str, Any]) -> Table:
    """All phases, a number a line."""
    shown = Table("phase", "what", "value", title="Scale-out rehearsal")
    for phase, numbers in result.items():
        for name, value in numbers.items():
            shown.add_row(phase, name, json.dumps(value))
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 when the drained restart, or a stream begun after the kill was noticed, failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--engines", type=Path, required=True)
    add("--callers", type=int, default=8, help=f"closed-loop callers, at most {MAX_CALLERS}")
    add("--phase-s", type=float, default=10.0, help=f"length of each phase in seconds, at most {MAX_PHASE_S:g}")
    add("--max-tokens", type=int, default=150)
    add("--threads", type=int, default=1, help="CPU threads of each engine process")
    add("--out", type=Path, help="JSON file")
    given = parser.parse_args(arguments)
    if not 2 <= given.callers <= MAX_CALLERS:
        parser.error(f"--callers: {given.callers} is not valid: from 2 to {MAX_CALLERS}")
    if not 1 <= given.phase_s <= MAX_PHASE_S:
        parser.error(f"--phase-s: {given.phase_s:g} is not valid: from 1 to {MAX_PHASE_S:g} seconds")
    options = ServerOptions(
        engines=given.engines, grpc_port=0, metrics_port=0, slots=SLOTS, queue=QUEUE, threads=given.threads
    )
    try:
        result = rehearse(options, given.callers, given.phase_s, given.max_tokens)
    except (CannotStart, BalancerError) as error:
        print(f"scale_out: {error}", file=sys.stderr)
        return 1
    Console().print(table(result))
    if given.out is not None:
        command = shlex.join(["python", "-m", "benchmarks.scale_out", *(arguments or sys.argv[1:])])
        report = {"machine": describe_machine(), "date": date.today().isoformat(), "command": command, **result}
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if result["kill"]["new_failed"] or result["drained_restart"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
