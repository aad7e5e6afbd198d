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
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_serving_options import CANCEL_KEPT_S, SETTLE_S, STOP_S, read_options
from benchmarks.mps import mps
from benchmarks.serving import STAGES
from benchmarks.stream_clients import ClientProcesses, Load, Part, request_for
from loadtest.clock import now_s
from server.errors import CannotStart
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_audio.contract.limits import Limits
from vita_audio.contract.modes import parse_mode
from vita_audio.engines.manifest import load_manifest
from vita_audio.machine import describe_machine
from vita_audio.stopping import stop_on_signals
from vita_client import AsyncClient, AsyncStream, Client, Pcm, StatusUpdate, TokensDelta

#: Share of a row's seconds, and the most of them, in which streams begin and nothing counts.
_RAMP_SHARE, _RAMP_MOST_S = 0.2, 4.0
#: The most that the cancel check takes, and the end of it, in which its own streams leave.
_CANCEL_MOST_S, _CANCEL_END_S = 25.0, 2.0
#: The most that the next row waits for cut streams.
_SETTLE_MOST_S = 8.0
_LOG_LINES = 40
_GPU_QUERY = (
    "nvidia-smi",
    "--query-gpu=name,memory.used,memory.total,utilization.gpu",
    "--format=csv,noheader,nounits",
)


def gpu_state() -> dict[str, Any]:
    """Name, memory in MiB and utilisation of the first GPU now; empty where nvidia-smi lists none."""
    try:
        made = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=10, check=True)
        name, used, total, busy = (field.strip() for field in made.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
    return {"gpu": name, "memory_mib": used, "memory_total_mib": total, "utilization_percent": busy}


def summarise(part: Part, seconds: float, prebuffer_s: float) -> dict[str, Any]:
    """One row's numbers; times are of streams that began when the load was steady."""
    steady = [s for s in part.streams if not s.warm_up] or part.streams
    done = [s for s in steady if s.outcome == "done" and s.audio_s] or [s for s in steady if s.audio_s]
    broken = [s for s in steady if s.underruns]
    staged = [s for s in steady if s.stages_ms and s.first_sample_ms is not None]
    row: dict[str, Any] = {
        "streams_counted": len(steady),
        "done": sum(s.outcome == "done" for s in steady),
        "cut": sum(s.outcome == "cut" for s in steady),
        "failed": sum(s.outcome == "failed" for s in steady),
        "no_sound": sum(not s.audio_s for s in steady),
        "errors": dict(part.errors),
        **_spread("ttfa_audible_ms", [s.audible_ms for s in steady]),
        **_spread("ttfa_sample_ms", [s.first_sample_ms for s in steady]),
        **_spread("rtf", [s.real_time_factor for s in done]),
        "underruns": sum(s.underruns for s in steady),
        "underrun_streams": len(broken) / len(steady) if steady else None,
        "underrun_s": sum(s.underrun_s for s in steady),
        "prebuffer_ms": prebuffer_s * 1e3,
        "tokens_per_s": part.tokens / seconds,
        "audio_s_per_s": part.audio_s / seconds,
        "tokens_per_stream": float(np.mean([s.tokens for s in done])) if done else None,
        **_spread("client_lag_ms", list(part.lags_ms)),
    }
    for stage in STAGES:
        row[f"first_{stage}_ms"] = _percentile([s.stages_ms.get(stage, 0.0) for s in staged], 50)
    hops = [(s.first_sample_ms or 0.0) - sum(s.stages_ms.get(stage, 0.0) for stage in STAGES) for s in staged]
    row["first_hops_ms"] = _percentile(hops, 50)
    return row


def _spread(name: str, values: list[float | None] | list[float]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {f"{name}_p{q}": _percentile(known, q) for q in (50, 95)}


def _percentile(values: list[float], q: float) -> float | None:
    return float(np.percentile(values, q)) if values else None


@dataclass(slots=True)
class _Watched:
    """One stream of the cancel check as it goes on."""

    stream: AsyncStream
    tokens: int = 0
    sounds: bool = False
    queued_ms: float = 0.0
    first_ms: float | None = None
    last_s: float = 0.0
    longest_gap_s: float = 0.0
    error: str = ""
    over: bool = False

    async def read(self) -> None:
        sent_s = self.last_s = now_s()
        try:
            async for event in self.stream:
                if isinstance(event, TokensDelta):
                    self.tokens += len(event.ids)
                elif isinstance(event, Pcm) and not self.sounds:
                    self.sounds, self.first_ms = True, (now_s() - sent_s) * 1e3
                elif isinstance(event, StatusUpdate):
                    self.queued_ms = event.status.timings_ms.get("lm_queue", 0.0)
                    self.longest_gap_s = max(self.longest_gap_s, now_s() - self.last_s)
                    self.last_s = now_s()
        except VitaError as error:
            self.error = f"{type(error).__name__}: {error}"
        self.over = True


async def cancel_check(
    server: TritonServer, mode: str, max_tokens: int, end_s: float, save: Callable[[dict[str, Any]], None]
) -> None:
    """Fill every slot, cancel half of the streams at once and send as many new ones in the same moment.

    Args:
        end_s: of every wait in here.
        save: called with how long the new ones waited for a place (the server's own lm_queue) and for their first
            sound and whether the others went on; then again, with what is left when all have been cancelled as well
            (metrics are 0.2 s old at most).
    """
    slots, deadline_s = server.options.slots, end_s - _CANCEL_END_S
    half = max(1, slots // 2)
    async with AsyncClient(server.grpc_url) as client:

        def send(seed: int, tokens: int) -> tuple[_Watched, asyncio.Task[None]]:
            watched = _Watched(client.send(request_for("tts", mode, seed, tokens), timeout_s=600))
            return watched, asyncio.create_task(watched.read())

        async def wait_for(streams: list[_Watched]) -> int:
            """Until all sound or have ended; how many sound."""
            while now_s() < deadline_s and not all(s.sounds or s.over for s in streams):
                await asyncio.sleep(0.01)
            return sum(s.sounds for s in streams)

        old = [send(n, max_tokens) for n in range(2 * half)]
        streams, tasks = [watched for watched, _ in old], [task for _, task in old]
        sounding = await wait_for(streams)
        gone, kept = streams[:half], streams[half:]
        before, cancel_s = [s.tokens for s in kept], now_s()
        for watched in kept:
            watched.longest_gap_s = 0.0
        for watched in gone:
            watched.stream.cancel()
        fresh = [send(1000 + n, 60) for n in range(half)]
        new = [watched for watched, _ in fresh]
        fresh_sounding = await wait_for(new)
        await asyncio.sleep(max(0.0, min(2.0, deadline_s - now_s())))
        went_on = [s.tokens > was and not s.error for s, was in zip(kept, before, strict=True)]
        result = {
            "mode": mode,
            "streams": len(streams),
            "sounding_before": sounding,
            "cancelled": half,
            **_spread("place_free_ms", waits := [s.queued_ms for s in new if not s.error]),
            "place_free_ms_max": max(waits, default=None),
            "new_sounding": fresh_sounding,
            **_spread("new_first_sample_ms", [s.first_ms for s in new]),
            "others_went_on": sum(went_on),
            "others": len(kept),
            "others_longest_gap_ms": 1e3 * max(s.longest_gap_s for s in kept),
            "errors": sorted({s.error for s in (*kept, *new) if s.error})[:5],
            "seconds": now_s() - cancel_s,
        }
        save(result)
        cut_s = now_s()
        for watched in (*kept, *new):
            watched.stream.cancel()
        await asyncio.wait([*tasks, *(task for _, task in fresh)], timeout=max(0.0, end_s - now_s()))
        while (left := await asyncio.to_thread(server.live_streams)) and now_s() < end_s:
            await asyncio.sleep(0.05)
        save({**result, "left_behind": left, "all_gone_ms": (now_s() - cut_s) * 1e3})


class Results:
    """The record; written anew at each change, so that a killed run keeps what it had."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._path, self.fields = path, head
        path.parent.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self, **fields: Any) -> None:
        self.fields |= fields
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text(json.dumps(self.fields, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self._path)


def _line(row: dict[str, Any]) -> str:
    """A row in one line."""
    name = f"{row['task']:>4} {row['mode']:>7} {row['streams']:>3} streams"
    if "skipped" in row:
        return f"{name}: {row['skipped']}"

    def number(key: str, digits: int = 0) -> str:
        value = row[key]
        return "-" if value is None else f"{value:.{digits}f}"

    def pair(key: str, digits: int = 0) -> str:
        return f"{number(f'{key}_p50', digits)}/{number(f'{key}_p95', digits)}"

    stages = " ".join(f"{stage} {number(f'first_{stage}_ms', 1)}" for stage in (*STAGES, "hops"))
    return (
        f"{name}: TTFA audible {pair('ttfa_audible_ms')} ms, sample {pair('ttfa_sample_ms')}, RTF {pair('rtf', 3)}, "
        f"{number('tokens_per_s')} tok/s, {number('audio_s_per_s', 1)} audio s/s, underruns {row['underruns']} in "
        f"{100 * (row['underrun_streams'] or 0):.0f} % of streams ({row['underrun_s']:.2f} s), {row['done']} done "
        f"{row['cut']} cut {row['failed']} failed | {stages} | client lag {number('client_lag_ms_p95', 1)} ms | "
        f"{row['left_behind']} left {row['all_gone_ms']:.0f} ms after the cut"
    )


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
                    print(_line(row), flush=True)

    def check_rows(self) -> None:
        """Raises VitaError when all streams of a row failed."""
        for row in self._results.fields["rows"]:
            if row.get("failed") and row["failed"] == row["streams_counted"]:
                name = f"{row['task']} {row['mode']}, {row['streams']} streams"
                raise VitaError(f"{name}: every stream failed: {'; '.join(row['errors'])}")

    def _row(self, task: str, mode: str, streams: int, number: int) -> dict[str, Any]:
        seconds, prebuffer_s = self._options.seconds, self._options.prebuffer_ms / 1e3
        begin_s = now_s() + 0.2
        from_s = begin_s + min(_RAMP_SHARE * seconds, _RAMP_MOST_S)
        until_s = begin_s + seconds
        running = self._clients.start(
            Load(
                self._server.grpc_url,
                task,
                mode,
                streams,
                1 + 1_000_000 * number,
                self._options.max_tokens,
                prebuffer_s,
                begin_s,
                from_s,
                until_s,
            )
        )
        time.sleep(0.2 + 0.6 * seconds)
        state = gpu_state()
        row = summarise(running.result(), until_s - from_s, prebuffer_s)
        return row | {"seconds": until_s - from_s, **self._settle(), **state}

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
    head = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu_serving", *(arguments or sys.argv[1:])]),
        "machine": describe_machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **gpu_state(),
    }
    try:
        results = Results(options.out, head)
    except OSError as error:
        print(f"error: --out: {options.out} cannot be written ({error.strerror}): name another file", file=sys.stderr)
        return 1
    with mps(options.mps) as mps_state, ClientProcesses(options.processes) as clients:
        print(f"MPS: {mps_state}", flush=True)
        start_s, limit_s = now_s(), max(1.0, end_s - now_s())
        served = ServerOptions(
            engines=options.engines,
            grpc_port=0,
            metrics_port=0,
            profile=options.profile,
            device=options.device,
            slots=options.slots,
            queue=options.slots,
            start_timeout_s=limit_s,
            exit_timeout_s=3,
            **({} if options.threads is None else {"threads": options.threads}),
        )
        server = TritonServer(served, options.out.with_suffix(".log"))
        results.save(mps=mps_state)
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
