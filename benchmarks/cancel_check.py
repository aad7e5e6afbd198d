"""Cancelling on a full server: how soon new streams take the places of cancelled ones, and whether others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from benchmarks.closed_loop import request_for
from benchmarks.record import spread
from loadtest.clock import now_s
from loadtest.driver import Drive, Record
from server.launch import TritonServer
from vita_client import AsyncClient

#: The end of the check, in which its own streams leave.
_END_S = 2.0
_TIMEOUT_S = 600.0
_NEW_TOKENS = 60


class _Stream:
    """One stream on its way."""

    def __init__(self, client: AsyncClient, mode: str, seed: int, tokens: int) -> None:
        self.drive = Drive(request_for("tts", mode, seed, tokens), _TIMEOUT_S)
        self.task: asyncio.Task[Record] = asyncio.create_task(self.drive.run_async(client))
        self.sent_s = now_s()

    @property
    def first_ms(self) -> float | None:
        """To the first samples; None until they come."""
        return next(((each.at_s - self.sent_s) * 1e3 for each in self.drive.responses if each.samples), None)

    @property
    def sounds_or_ended(self) -> bool:
        return self.first_ms is not None or self.task.done()

    @property
    def tokens(self) -> int:
        return sum(response.tokens for response in self.drive.responses)

    def longest_gap_s(self, since_s: float) -> float:
        """Between two responses of which the later came after `since_s`."""
        times = [self.sent_s, *(response.at_s for response in self.drive.responses)]
        return max((later - earlier for earlier, later in pairwise(times) if later > since_s), default=0.0)

    @property
    def queued_ms(self) -> float:
        """The server's own word on the wait for a slot."""
        return next((each.stages_ms.get("lm_queue", 0.0) for each in self.drive.responses), 0.0)


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
    half, deadline_s = max(1, server.options.slots // 2), end_s - _END_S
    async with AsyncClient(server.grpc_url) as client:

        async def sounding(streams: list[_Stream]) -> int:
            """Wait until all sound or have ended; how many sound."""
            while now_s() < deadline_s and not all(stream.sounds_or_ended for stream in streams):
                await asyncio.sleep(0.01)
            return sum(stream.first_ms is not None for stream in streams)

        streams = [_Stream(client, mode, seed, max_tokens) for seed in range(2 * half)]
        sounding_before = await sounding(streams)
        gone, kept = streams[:half], streams[half:]
        before, cancel_s = [stream.tokens for stream in kept], now_s()
        for stream in gone:
            stream.drive.cancel()
        new = [_Stream(client, mode, 1000 + number, _NEW_TOKENS) for number in range(half)]
        new_sounding = await sounding(new)
        await asyncio.sleep(max(0.0, min(2.0, deadline_s - now_s())))
        went_on = [s.tokens > was and s.drive.failure is None for s, was in zip(kept, before, strict=True)]
        waits = [stream.queued_ms for stream in new if stream.drive.failure is None]
        result = {
            "mode": mode,
            "streams": len(streams),
            "sounding_before": sounding_before,
            "cancelled": half,
            **spread("place_free_ms", waits),
            "place_free_ms_max": max(waits, default=None),
            "new_sounding": new_sounding,
            **spread("new_first_sample_ms", [stream.first_ms for stream in new]),
            "others_went_on": sum(went_on),
            "others": len(kept),
            "others_longest_gap_ms": 1e3 * max(stream.longest_gap_s(cancel_s) for stream in kept),
            "errors": sorted({str(s.drive.failure) for s in (*kept, *new) if s.drive.failure is not None})[:5],
            "seconds": now_s() - cancel_s,
        }
        save(result)
        cut_s = now_s()
        for stream in (*kept, *new):
            stream.drive.cancel()
        await asyncio.wait([stream.task for stream in (*streams, *new)], timeout=max(0.0, end_s - now_s()))
        while (left := await asyncio.to_thread(server.live_streams)) and now_s() < end_s:
            await asyncio.sleep(0.05)
        save({**result, "left_behind": left, "all_gone_ms": (now_s() - cut_s) * 1e3})
