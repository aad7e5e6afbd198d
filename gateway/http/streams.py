"""Answers that stream: an error before the first piece is still an HTTP status, later it is an event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse

from gateway.errors import body_of
from vita_audio.contract.errors import VitaError

T = TypeVar("T")
#: Proxies must not hold pieces back.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def begun(pieces: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same pieces, once the first one is there. Raises what came instead of it."""
    first = await anext(pieces, None)

    async def all_of_them() -> AsyncIterator[T]:
        if first is not None:
            yield first
            async for piece in pieces:
                yield piece

    return all_of_them()


async def event_stream(events: AsyncIterator[dict[str, Any]], end: str = "") -> StreamingResponse:
    """Server-sent events; `end` is the data of the last one."""
    checked = await begun(events)

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
