"""A served model under load, on a GPU machine whose time is short: each row has its seconds and is kept at once.

    python -m benchmarks.gpu_serving --engines engines/random-7b --slots 64 --streams 1 8 32 64 --out serving_gpu.json

A real Triton server on loopback and real gRPC clients in processes of their own, closed loop, staggered. A row is a
task, a mode and a number of streams; a last check cancels half of the streams of a full server. `--device cpu` or
`--profile cpu` walks the same way without a GPU. `benchmarks.serving` is the other one: rows of a fixed number of
requests, modes in turn, for machines with time and noise.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from concurrent.futures import BrokenExecutor
from typing import Any

from benchmarks.cancel_check import cancel_check
from benchmarks.client_processes import ClientProcesses, Load
from benchmarks.closed_loop import request_for
from benchmarks.gpu_rows import line, summarise
from benchmarks.gpu_serving_options import CANCEL_KEPT_S, SETTLE_S, STOP_S, read_options
from benchmarks.record import Results, record_head
from loadtest.clock import now_s
from server.errors import CannotStart
from server.launch import TritonServer
from server.options import MPS_OFF, MPS_ON, ServerOptions
from vita_audio.contract.errors import VitaError
from vita_audio.contract.limits import Limits
from vita_audio.contract.modes import parse_mode
from vita_audio.engines.manifest import load_manifest
from vita_audio.machine import gpu_fields
from vita_audio.stopping import stop_on_signals
from vita_client import Client

#: Share of a row's seconds, and the most of them, in which streams begin and nothing counts.
_RAMP_SHARE, _RAMP_MOST_S = 0.2, 4.0
#: The most that the cancel check takes.
_CANCEL_MOST_S = 25.0
#: The most that the next row waits for cut streams.
_SETTLE_MOST_S = 8.0
_LOG_LINES = 40
_GPU_STATE = {"gpu": "name", "memory_mib": "memory.used", "memory_total_mib": "memory.total",
              "utilization_percent": "utilization.gpu"}  # fmt: skip


def gpu_state() -> dict[str, str]:
    """Name, memory in MiB and utilisation of the first GPU now; empty where nvidia-smi lists none."""
    values = gpu_fields(",".join(_GPU_STATE.values())).splitlines()[0].split(",")
    return dict(zip(_GPU_STATE, map(str.strip, values), strict=True)) if len(values) == len(_GPU_STATE) else {}


class _Session:
    """The server is up: rows until the time is over."""

    def __init__(
        self,
        server: TritonServer,
        clients: ClientProcesses,
        options: argparse.Namespace,
        results: Results,
        end_s: float,
    ) -> None:
        self._server, self._clients, self._options, self._results = server, clients, options, results
        self._end_s = end_s

    def warm_up(self) -> None:
        """One short stream of each kind: what only a first stream pays is not measured."""
        with Client(self._server.grpc_url) as client:
            for task in self._options.tasks:
                for mode in self._options.modes:
                    left_s = max(1.0, min(120.0, self._end_s - now_s()))
                    tokens = min(60, self._options.max_tokens)
                    client.send(request_for(task, mode, 1, tokens), timeout_s=left_s).collect()

    def rows(self) -> None:
        rows: list[dict[str, Any]] = []
        for task in self._options.tasks:
            for streams in self._options.streams:
                for mode in self._options.modes:
                    row = {"task": task, "mode": mode, "streams": streams}
                    left_s = self._end_s - now_s() - CANCEL_KEPT_S
                    if left_s < self._options.seconds + SETTLE_S:
                        row["skipped"] = "not run: out of time"
                    elif not self._server.running:
                        row["skipped"] = "not run: the server has ended"
                    else:
                        row |= self._row(task, mode, streams, len(rows))
                    rows.append(row)
                    self._results.save(rows=rows)
                    print(line(row), flush=True)

    def check_rows(self) -> None:
        """Raises VitaError when all streams of a row failed."""
        for row in self._results.fields["rows"]:
            if row.get("failed") and row["failed"] == row["streams_counted"]:
                name = f"{row['task']} {row['mode']}, {row['streams']} streams"
                raise VitaError(f"{name}: every stream failed: {'; '.join(row['errors'])}")

    def _row(self, task: str, mode: str, streams: int, number: int) -> dict[str, Any]:
        seconds, begin_s = self._options.seconds, now_s() + 0.2
        load = Load(
            url=self._server.grpc_url,
            task=task,
            mode=mode,
            streams=streams,
            first_seed=1 + 1_000_000 * number,
            max_tokens=self._options.max_tokens,
            begin_s=begin_s,
            from_s=begin_s + min(_RAMP_SHARE * seconds, _RAMP_MOST_S),
            until_s=begin_s + seconds,
        )
        running = self._clients.start(load)
        time.sleep(0.2 + 0.6 * seconds)
        state = gpu_state()
        row = summarise(running.result(), load, self._options.prebuffer_ms / 1e3)
        return row | {"seconds": load.until_s - load.from_s, **self._settle(), **state}

    def _settle(self) -> dict[str, float]:
        """Wait until the cut streams are gone from the server: how long it took, and how many are left all the same."""
        start_s = now_s()
        while (left := self._server.live_streams()) and now_s() < min(start_s + _SETTLE_MOST_S, self._end_s):
            time.sleep(0.05)
        return {"all_gone_ms": (now_s() - start_s) * 1e3, "left_behind": left}

    def cancel(self, max_tokens: int) -> None:
        left = self._settle()["left_behind"] if self._server.running else 0  # they would hold places
        left_s = self._end_s - now_s()
        if left or left_s < CANCEL_KEPT_S / 2 or not self._server.running:
            self._results.save(cancel={"skipped": f"out of time, or the server has ended, or {left} streams are left"})
            return
        found: dict[str, Any] = {}

        def save(known: dict[str, Any]) -> None:
            found.update(known)
            self._results.save(cancel=found)

        end_s = min(self._end_s, now_s() + _CANCEL_MOST_S)
        asyncio.run(cancel_check(self._server, self._options.modes[0], max_tokens, end_s, save))
        print("cancel: " + ", ".join(f"{name} {value}" for name, value in found.items()), flush=True)


def _limits(options: argparse.Namespace) -> Limits:
    """Limits of the engines. Raises VitaError when they are not there, or cannot do what the rows ask for."""
    limits = load_manifest(options.engines, options.profile).limits
    for mode in options.modes:
        parse_mode(mode, limits.mctp_modules)
    if options.max_tokens > limits.max_tokens:
        raise VitaError(
            f"--max-tokens: {options.max_tokens} is not valid: these engines answer with at most {limits.max_tokens}"
        )
    return limits


def main(arguments: list[str] | None = None) -> int:
    options = read_options(__doc__, arguments)
    end_s = now_s() + options.budget - STOP_S
    try:
        results = Results(options.out, {**record_head("benchmarks.gpu_serving", arguments), **gpu_state()})
    except OSError as error:
        print(f"error: --out: {options.out} cannot be written ({error.strerror}): name another file", file=sys.stderr)
        return 1
    with ClientProcesses(options.processes) as clients:
        start_s, limit_s = now_s(), max(1.0, end_s - now_s())
        served = ServerOptions(
            engines=options.engines,
            grpc_port=0,
            metrics_port=0,
            profile=options.profile,
            device=options.device,
            mps=MPS_ON if options.mps else MPS_OFF,
            one_process=options.one_process,
            gpu_priority=options.gpu_priority,
            slots=options.slots,
            queue=options.slots,
            start_timeout_s=limit_s,
            exit_timeout_s=3,
            prefix_cache="off",  # the same prompts come again and again
            **({} if options.threads is None else {"threads": options.threads}),
        )
        server = TritonServer(served, options.out.with_suffix(".log"))
        results.save(mps=served.mps, one_process=served.one_process, gpu_priority=served.gpu_priority)
        try:
            limits = _limits(options)
            with server:
                ready = {
                    "ready_s": server.start_seconds,
                    "resident_mib": server.resident_bytes() / 2**20,
                    **gpu_state(),
                }
                results.save(server=ready)
                print(f"ready: {ready}", flush=True)
                session = _Session(server, clients, options, results, end_s)
                session.warm_up()
                session.rows()
                session.cancel(min(2000, limits.max_tokens, limits.context_tokens // 2))
                if not server.running:
                    raise CannotStart(f"the server ended with exit code {server.exit_code}")
            session.check_rows()
        except (CannotStart, VitaError, OSError, BrokenExecutor) as error:
            reason = str(error)
            if not server.start_seconds and now_s() > start_s + limit_s:
                reason += f"; --budget {options.budget:g} leaves no more for the start: give more"
            tail = server.log().splitlines()[-_LOG_LINES:] if server.log_file.exists() else []
            results.save(error=reason, log_tail=tail)
            print("\n".join([*tail, f"error: {reason}"]), file=sys.stderr, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
