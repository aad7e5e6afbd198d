"""Small routes that use a gateway as real ones do; tests put them into an app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from gateway.context import caller, gateway_of
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

router = APIRouter()


class Speak(BaseModel):
    text: str = Field(max_length=1000)
    seed: int | None = Field(None, ge=0, lt=2**64)


@router.post("/v1/speak", response_class=Response, responses={200: {"content": {"audio/pcm": {}}}})
async def speak(request: Request, body: Speak) -> Response:
    """The sound of one request, int16 at 22 050 Hz. What a double plays is picked by the text."""
    gateway = gateway_of(request)
    async with gateway.access.stream(caller(request)) as use, gateway.upstreams.client() as client:
        timeout_s = gateway.settings.request_timeout_s
        reply = await client.collect(body.text, task="tts", seed=body.seed, timeout_s=timeout_s)
        use.sound(len(reply.pcm) / OUTPUT_SAMPLE_RATE_HZ)
        return Response(reply.pcm.tobytes(), media_type="audio/pcm")


@router.post("/v1/count")
async def count(request: Request) -> int:
    """How many bytes the body has."""
    return len(await request.body())


@router.get("/v1/endless")
async def endless(request: Request) -> StreamingResponse:
    """Bytes without end. They stop when the caller is gone, and the place of its key is free."""
    gateway = gateway_of(request)

    async def noise() -> AsyncIterator[bytes]:
        async with gateway.access.stream(caller(request)):
            while True:
                yield bytes(1 << 16)
                await asyncio.sleep(0)

    return StreamingResponse(noise())


@router.get("/v1/fault")
async def fault(secret: str) -> None:
    """A bug: an exception whose text repeats what the caller sent."""
    raise RuntimeError(secret)


@router.websocket("/v1/talk")
async def talk(websocket: WebSocket) -> None:
    """Sends back what it gets, until the gateway drains."""
    gateway = gateway_of(websocket)
    async with gateway.access.stream(caller(websocket)):
        await websocket.accept("realtime" if "realtime" in websocket.scope["subprotocols"] else None)
        draining = asyncio.create_task(gateway.draining.wait())
        while True:
            reading = asyncio.create_task(websocket.receive())
            await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                return await websocket.close(1001)
            message = reading.result()
            if message["type"] == "websocket.disconnect":
                draining.cancel()
                return
            await websocket.send_text(message["text"])
