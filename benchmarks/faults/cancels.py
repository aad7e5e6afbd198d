"""Streams that are cancelled at random moments: every place is free again, and every slot works."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator

from benchmarks.closed_loop import Callers, request_for
from benchmarks.faults.bench import SLOTS, Bench
from benchmarks.faults.rows import FAIR, Row, counted, telling, unfair
from benchmarks.faults.seen import STREAM_TIMEOUT_S, load_request
from loadtest.driver import CANCELLED, DONE, Drive, Record
from vita_client import AsyncClient

#: More than slots, so that some are cancelled while they wait, and fewer than places.
_AT_ONCE = SLOTS + 4
#: From before the server has read the request to after the first sound.
_LATEST_S = 1.5
_TOKENS = 150
#: Streams for each cancel that is wanted, at most: a fast machine ends many before their moment comes.
_MOST = 10


def cells() -> Iterator[tuple[str, Callable[[Bench], Row]]]:
    yield "random cancels", cancels


def cancels(bench: Bench) -> Row:
    """`sizes["cancels"]` cancels."""
    count = round(bench.sizes["cancels"])
    with bench.server() as server:
        records = asyncio.run(_storm(server.url, count, bench.random("cancels"), _MOST * count))
        taken = bench.places_left(server)
        with Callers(server.url, SLOTS, load_request, requests=1, timeout_s=STREAM_TIMEOUT_S * bench.patience) as after:
            pass
        left, wrong = bench.ending(server)
    cancelled = sum(each.code == CANCELLED for each in records)
    codes = [each.code for each in records]
    if cancelled < count:
        wrong.append(f"{cancelled} of {count} streams were cancelled")
    if taken:
        wrong.append(f"{taken:g} places are taken when all are cancelled")
    wrong += unfair(codes, FAIR | {"server_full"}) + telling(each.error for each in records)
    wrong += unfair((each.code for each in after.records), frozenset({DONE}))
    failed = sum(bool(each.error) for each in records)
    callers = f"{counted(codes)}; then {counted(each.code for each in after.records)}"
    return Row("cancels", f"{cancelled} random cancels", callers, failed=failed, left=left, wrong=tuple(wrong))


async def _storm(url: str, count: int, choice: random.Random, most: int) -> list[Record]:
    """Streams until `count` were cancelled, `most` at most."""
    records: list[Record] = []
    sent = cancelled = 0

    async def caller(client: AsyncClient) -> None:
        nonlocal sent, cancelled
        while cancelled < count and sent < most:
            sent += 1
            drive = Drive(request_for("tts", None, sent, _TOKENS), STREAM_TIMEOUT_S)
            timer = asyncio.get_running_loop().call_later(choice.uniform(0, _LATEST_S), drive.cancel)
            record = await drive.run_async(client)
            timer.cancel()
            records.append(record)
            cancelled += record.code == CANCELLED

    async with AsyncClient(url) as client:
        await asyncio.gather(*(caller(client) for _ in range(_AT_ONCE)))
    return records
