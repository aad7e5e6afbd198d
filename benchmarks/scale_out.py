"""Two servers behind HAProxy under load: how streams spread, what a killed server costs, and a drained restart.

    python -m benchmarks.scale_out --engines engines/cpu --out benchmarks/results/scale_out.json

Real Triton servers, the balancer of `deploy/haproxy/`, closed-loop callers, all on loopback, in at most ten minutes.
Server `a` is killed (SIGKILL) in the middle of its streams and started again; then `b` is drained and restarted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.balancer import Balancer, BalancerError
from benchmarks.closed_loop import Callers, request_for
from benchmarks.record import Results, record_head, spread
from loadtest.clock import now_s
from loadtest.driver import Record
from server.errors import CannotStart
from server.launch import TritonServer
from server.options import ServerOptions
from vita_client.request import Request

#: Both servers fit on a small machine; what does not fit waits in their queues.
SLOTS, QUEUE = 8, 32
MAX_PHASE_S, MAX_CALLERS = 120.0, 64
STREAM_TIMEOUT_S = 60.0
POLL_S = 0.05


@dataclass(slots=True)
class Trial:
    """The two servers, by the balancer's names, and the balancer."""

    servers: dict[str, TritonServer]
    balancer: Balancer
    phase_s: float

    def spread(self, callers: Callers) -> dict[str, Any]:
        """A quiet phase: how many streams each server got, and how fast they were."""
        before = {name: int(row["stot"]) for name, row in self.balancer.servers().items()}
        begin = now_s()
        time.sleep(self.phase_s)
        after = self.balancer.servers()
        records = [record for record in callers.records if record.sent_s >= begin]
        return {
            "streams": {name: int(after[name]["stot"]) - before[name] for name in self.servers},
            "ended": len(records),
            "failed": sum(bool(record.error) for record in records),
            **_ttfa(records),
        }

    def kill(self, callers: Callers) -> dict[str, Any]:
        """Server `a` dies at a moment when both have streams; it is started again at the end of the phase."""
        self._wait_until(lambda: all(self.balancer.streams(name) for name in self.servers))
        on = {name: self.balancer.streams(name) for name in self.servers}
        killed = now_s()
        self.servers["a"].kill()
        self.balancer.wait_for("a", "DOWN")
        noticed = now_s()
        time.sleep(self.phase_s)
        begin = now_s()
        down = [record for record in callers.records if killed <= record.end_s < begin]
        begun_before = [record for record in down if record.sent_s < killed]
        failed = [record for record in begun_before if record.error]
        between = [record for record in down if killed <= record.sent_s < noticed]
        begun_after = [record for record in down if record.sent_s >= noticed]
        self.restart("a")
        return {
            "streams_before": on,
            "failed": len(failed),
            "failed_after_ms": [round((record.end_s - killed) * 1e3, 1) for record in failed],
            "unharmed": len(begun_before) - len(failed),
            "noticed_ms": round((noticed - killed) * 1e3, 1),
            "new_before_notice": len(between),
            "new_before_notice_failed": sum(bool(record.error) for record in between),
            "new": len(begun_after),
            "new_failed": sum(bool(record.error) for record in begun_after),
            "errors": dict(Counter(record.error for record in down if record.error)),
            "back_after_s": round(now_s() - begin, 1),
            **_ttfa(begun_after),
        }

    def drained_restart(self, callers: Callers) -> dict[str, Any]:
        """Server `b` gets no new streams, ends those it has, is stopped, started and taken back."""
        self._wait_until(lambda: self.balancer.streams("b") > 0)
        begin = now_s()
        had = self.balancer.streams("b")
        self.balancer.set_state("b", "drain")
        self._wait_until(lambda: self.balancer.streams("b") == 0)
        drained_s = now_s() - begin
        self.servers["b"].stop()
        self.restart("b")
        time.sleep(self.phase_s)
        records = [record for record in callers.records if record.end_s >= begin]
        return {
            "streams_when_drained": had,
            "drained_s": round(drained_s, 1),
            "ended": len(records),
            "failed": sum(bool(record.error) for record in records),
            "errors": dict(Counter(record.error for record in records if record.error)),
        }

    def restart(self, name: str) -> None:
        """Start a stopped server on its old ports and wait until the balancer uses it."""
        self.servers[name] = TritonServer(self.servers[name].options).start()
        self.balancer.set_state(name, "ready")
        self.balancer.wait_for(name, "UP")

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = now_s() + STREAM_TIMEOUT_S
        while not condition():
            if now_s() > deadline:
                raise BalancerError(f"the streams of the servers did not change within {STREAM_TIMEOUT_S:g} s")
            time.sleep(POLL_S)


def measure(options: ServerOptions, callers: int, phase_s: float, max_tokens: int) -> dict[str, Any]:
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
            trial = Trial(servers, balancer, phase_s)

            def request(caller: int, turn: int) -> Request:
                return request_for("tts", None, 1000 * caller + turn, max_tokens)

            with Callers(balancer.url, callers, request, timeout_s=STREAM_TIMEOUT_S) as load:
                return {
                    "spread": trial.spread(load),
                    "kill": trial.kill(load),
                    "drained_restart": trial.drained_restart(load),
                }
    finally:
        for server in servers.values():
            server.stop()


def _ttfa(records: Sequence[Record]) -> dict[str, Any]:
    """Percentiles in ms of those that sounded."""
    return {
        name: round(ms, 1) for name, ms in spread("ttfa_ms", [r.ttfa_ms for r in records]).items() if ms is not None
    }


def table(result: dict[str, Any]) -> Table:
    """All phases, a number a line."""
    shown = Table("phase", "what", "value", title="Scale-out")
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
        result = measure(options, given.callers, given.phase_s, given.max_tokens)
    except (CannotStart, BalancerError) as error:
        print(f"scale_out: {error}", file=sys.stderr)
        return 1
    Console().print(table(result))
    if given.out is not None:
        Results(given.out, {**record_head("benchmarks.scale_out", arguments), **result})
    return 1 if result["kill"]["new_failed"] or result["drained_restart"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
