"""Closed-loop callers in processes of their own.

Clients that share a process with the measuring program, or a core with each other, would delay what they measure; how
late their event loops ran is part of the result. Needs the base install only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import active_children, get_context

from benchmarks.closed_loop import request_for
from loadtest.clock import now_s
from loadtest.driver import Drive, Record
from vita_client import AsyncClient

_TIMEOUT_S = 600.0
_LAG_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Load:
    """What the callers of one process do. Moments on `loadtest.clock`.

    Streams sent before `from_s` are warm-up; at `until_s` those that still run are cancelled.
    """

    url: str
    task: str
    mode: str
    streams: int
    first_seed: int
    max_tokens: int
    begin_s: float
    from_s: float
    until_s: float


@dataclass(slots=True)
class Part:
    """What one process, or all of them together, measured. `lags_ms`: how late an event loop came back."""

    records: list[Record] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)


class ClientProcesses:
    """Processes that stay from row to row. Use as a context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
        for _ in range(count):
            self._pool.submit(_load_modules)  # starts them all while the server loads

    def start(self, load: Load) -> Running:
        """Share the streams of a load among the processes."""
        shares = [load.streams // self._count + (n < load.streams % self._count) for n in range(self._count)]
        loads = [
            replace(load, streams=share, first_seed=load.first_seed + n * 100_000) for n, share in enumerate(shares)
        ]
        return Running([self._pool.submit(run_load, each) for each in loads if each.streams])

    def __enter__(self) -> ClientProcesses:
        return self

    def __exit__(self, *ignored: object) -> None:
        for process in active_children():  # a load under way would run to its end
            process.terminate()
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Running:
    """A load under way."""

    futures: Sequence[Future[Part]]

    def result(self) -> Part:
        """Wait for the end; all processes together."""
        whole = Part()
        for future in self.futures:
            part = future.result()
            whole.records += part.records
            whole.lags_ms += part.lags_ms
        return whole


def _load_modules() -> None:
    """Nothing: the process has imported this module and all that it needs once it is here."""


def run_load(load: Load) -> Part:
    """Run the callers of one load in this process."""
    return asyncio.run(_run(load))


async def _run(load: Load) -> Part:
    part = Part()
    watch = asyncio.create_task(_watch_loop(part.lags_ms))
    async with AsyncClient(load.url) as client:
        await asyncio.gather(*(_caller(client, load, number, part) for number in range(load.streams)))
    watch.cancel()
    return part


async def _watch_loop(lags_ms: list[float]) -> None:
    """How much later than asked for the event loop comes back: later than that nothing was read."""
    while True:
        due_s = now_s() + _LAG_POLL_S
        await asyncio.sleep(_LAG_POLL_S)
        lags_ms.append(1e3 * max(0.0, now_s() - due_s))


async def _caller(client: AsyncClient, load: Load, number: int, part: Part) -> None:
    # Spread over the warm-up: callers that all begin at once stay in step for a while.
    await asyncio.sleep(max(0.0, load.begin_s - now_s() + (load.from_s - load.begin_s) * number / load.streams))
    seed = load.first_seed + 1_000 * number
    while now_s() < load.until_s:
        drive = Drive(request_for(load.task, load.mode, seed, load.max_tokens), _TIMEOUT_S)
        end = asyncio.get_running_loop().call_later(load.until_s - now_s(), drive.cancel)
        record = await drive.run_async(client)
        end.cancel()
        part.records.append(record)
        seed += 1
        if record.error:
            await asyncio.sleep(0.2)  # a broken server is not asked ten thousand times
