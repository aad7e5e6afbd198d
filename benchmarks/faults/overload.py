"""Twenty times the requests that the server can serve: refusals are immediate, and what it takes is served as ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from benchmarks.closed_loop import Callers, request_for
from benchmarks.faults.bench import SLOTS, Bench
from benchmarks.faults.rows import FAIR, Row, counted, telling, unfair
from benchmarks.record import percentile
from loadtest.arrivals import PoissonSource
from loadtest.clock import now_s
from loadtest.driver import DONE, Drive, Record
from vita_client import AsyncClient

TIMES = 20
REFUSED_MS, TTFA_TIMES, MEMORY_SHARE = 50.0, 1.5, 0.05
_QUEUE = 1
_FULL = "server_full"
_TIMEOUT_S, _TOKENS, _SETTLE_S, _POLL_S = 60.0, 150, 10.0, 0.005


def cells() -> Iterator[tuple[str, Callable[[Bench], Row]]]:
    yield f"{TIMES} x capacity", overload


def overload(bench: Bench) -> Row:
    """Capacity is measured first, by as many callers as there are places; then the flood comes for
    `sizes["overload_s"]` seconds at Poisson times."""
    seconds = bench.sizes["overload_s"]
    with bench.server("--slots", str(SLOTS), "--queue", str(_QUEUE)) as server:
        base, rate_hz = _capacity(server.url, seconds / 2)
        time.sleep(_SETTLE_S)
        before_mib = server.resident_mib()
        records = asyncio.run(_flood(server.url, TIMES * rate_hz, seconds, bench))
        time.sleep(_SETTLE_S)
        after_mib = server.resident_mib()
        left, wrong = bench.ending(server)
    figures = {
        "capacity_per_s": rate_hz,
        "offered_per_s": len(records) / seconds,
        "refused_ms_p95": percentile([each.total_ms for each in records if each.error and not each.responses], 95),
        "ttfa_ms_p95_capacity": percentile([each.ttfa_ms for each in base if each.code == DONE], 95),
        "ttfa_ms_p95": percentile([each.ttfa_ms for each in records if each.code == DONE], 95),
        "memory_mib_before": before_mib,
        "memory_mib_after": after_mib,
    }
    wrong += judged(figures) + unfair((e.code for e in records), FAIR | {_FULL}) + telling(e.error for e in records)
    lost = sum(bool(each.error) and each.code != _FULL for each in records)
    callers = counted(each.code for each in records)
    fault = f"{TIMES} x capacity for {seconds:g} s"
    return Row("overload", fault, callers, failed=lost, left=left, wrong=tuple(wrong), figures=figures)


def judged(figures: dict[str, float | None]) -> list[str]:
    """Complaints about times and memory."""
    refused, ttfa, base = (figures[name] for name in ("refused_ms_p95", "ttfa_ms_p95", "ttfa_ms_p95_capacity"))
    if refused is None or ttfa is None or base is None:
        return ["nothing was refused, or nothing was served"]
    before, after = figures["memory_mib_before"] or 0.0, figures["memory_mib_after"] or 0.0
    wrong = []
    if refused > REFUSED_MS:
        wrong.append(f"refusals P95 {refused:.0f} ms, at most {REFUSED_MS:g}")
    if ttfa > TTFA_TIMES * base:
        wrong.append(f"TTFA P95 {ttfa:.0f} ms, at capacity {base:.0f}: at most {TTFA_TIMES:g} times that")
    if after > (1 + MEMORY_SHARE) * before:
        wrong.append(f"memory {before:.0f} to {after:.0f} MiB, at most {MEMORY_SHARE:.0%} more")
    return wrong


def _capacity(url: str, seconds: float) -> tuple[list[Record], float]:
    """Streams of as many callers as there are places, and how many end in a second."""
    begin_s = now_s()
    with Callers(url, SLOTS + _QUEUE, lambda n, i: request_for("tts", None, 1000 * n + i, _TOKENS)) as callers:
        time.sleep(seconds)
    done = [each for each in callers.records if each.code == DONE]
    return done, len(done) / (now_s() - begin_s)


async def _flood(url: str, rate_hz: float, seconds: float, bench: Bench) -> list[Record]:
    begin_s, seed = now_s(), 0
    source = PoissonSource(rate_hz, begin_s, bench.random("overload"))
    tasks: list[asyncio.Task[Record]] = []
    async with AsyncClient(url) as client:
        while now_s() < begin_s + seconds:
            for _ in source.due(now_s()):
                seed += 1
                drive = Drive(request_for("tts", None, seed, _TOKENS), _TIMEOUT_S)
                tasks.append(asyncio.create_task(drive.run_async(client)))
            await asyncio.sleep(_POLL_S)
        return list(await asyncio.gather(*tasks))
