"""Answers that stream: an error before the first piece is still an HTTP status, later it is an event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from gateway.errors import GatewayError, body_of
from vita_audio.contract.errors import VitaError

T = TypeVar("T")
#: Proxies must not hold pieces back.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller disconnects. The body must have been read.

    Raises:
        GatewayError: `caller_left`; otherwise what `work` raises.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GatewayError("the caller disconnected before its answer", code="caller_left")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def begun(request: Request, pieces: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same pieces, once the first one is there. Raises what came instead of it, and as `while_connected`."""

    async def next_piece() -> T | None:
        return await anext(pieces, None)

    first = await while_connected(request, next_piece())

    async def all_of_them() -> AsyncIterator[T]:
        if first is not None:
            yield first
            async for piece in pieces:
                yield piece

    return all_of_them()


async def event_stream(request: Request, events: AsyncIterator[dict[str, Any]], end: str = "") -> StreamingResponse:
    """Server-sent events; `end` is the data of the last one."""
    checked = await begun(request, events)

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in checked:
                yield f"data: {json.dumps(event)}\n\n"
        except VitaError as error:
            yield f"data: {json.dumps(body_of(error))}\n\n"
            return
        if end:
            yield f"data: {end}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers=HEADERS)
