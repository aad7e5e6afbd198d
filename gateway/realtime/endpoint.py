"""The WebSocket route `/v1/realtime`: reads messages, sends events, ends the connection when it has to."""

from __future__ import annotations

import asyncio
import contextlib
import time

import anyio
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from gateway.context import caller, gateway_of
from gateway.errors import response_of
from gateway.realtime.events import EventError, error_event, new_id
from gateway.realtime.outbox import NotRead, Outbox
from gateway.realtime.protocol import Protocol
from gateway.realtime.session import RealtimeSession, Session, TranscriptionSession
from gateway.realtime.talk import Talk
from gateway.voices import mode_of
from vita_audio.contract.errors import VitaError

#: A session ends after so long without a message of its client, and after so long in all.
IDLE_S, LONGEST_S = 900.0, 3600.0
#: How long the client may take for the last event.
_LAST_EVENT_S = 5.0
#: WebSocket's close codes.
_GOING_AWAY, _POLICY = 1001, 1008

router = APIRouter()


class _Ended(Exception):
    """The session is over: the last error its client is sent, and the code that closes the connection."""

    def __init__(self, message: str, code: str, close_code: int) -> None:
        super().__init__(message)
        self.event, self.close_code = error_event(EventError(message, code), None), close_code


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket, model: str = "", intent: str = "") -> None:
    """One session. `intent=transcription`: speech is written down and not answered."""
    gateway = gateway_of(websocket)
    try:
        async with gateway.access.stream(caller(websocket)) as use:
            offered = websocket.scope.get("subprotocols", [])
            await websocket.accept(subprotocol="realtime" if "realtime" in offered else None)
            outbox = Outbox()
            servers = gateway.upstreams
            talk = Talk(
                servers.client,
                mode=mode_of(model),
                ready=lambda: servers.ready,
                timeout_s=gateway.settings.request_timeout_s,
            )
            protocol = Protocol(_new_session(model, intent), talk, outbox, use)
            try:
                await _serve(websocket, protocol, outbox, gateway.draining)
            finally:
                await protocol.close()
    except VitaError as error:
        await websocket.send_denial_response(response_of(error))


def _new_session(model: str, intent: str) -> Session:
    session_id, expires_at = new_id("sess"), int(time.time() + LONGEST_S)
    if intent == "transcription":
        return TranscriptionSession(id=session_id, expires_at=expires_at)
    return RealtimeSession(id=session_id, expires_at=expires_at, model=model)


async def _serve(websocket: WebSocket, protocol: Protocol, outbox: Outbox, draining: asyncio.Event) -> None:
    """Until the client leaves or has to; then the connection is closed."""
    protocol.open()
    tasks = {
        asyncio.create_task(_read(websocket, protocol, outbox)),
        asyncio.create_task(outbox.run(websocket.send_text)),
        asyncio.create_task(_drain(protocol, draining)),
    }
    try:
        ended, _ = await asyncio.wait(tasks, timeout=LONGEST_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    if not ended:
        results.append(
            _Ended(f"the session has lasted {LONGEST_S:g} s; open another one", "session_expired", _GOING_AWAY)
        )
    for result in results:
        if isinstance(result, NotRead):
            await _close(websocket, None, _POLICY)
        elif isinstance(result, _Ended):
            await _close(websocket, result, result.close_code)
        elif isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
            raise result


async def _read(websocket: WebSocket, protocol: Protocol, outbox: Outbox) -> None:
    """Handle one message after the other, each when there is room for what it may bring."""
    while True:
        try:
            with anyio.fail_after(IDLE_S):
                message = await websocket.receive()
        except TimeoutError:
            raise _Ended(f"no message for {IDLE_S:g} s; the session is over", "session_idle", _GOING_AWAY) from None
        if message["type"] == "websocket.disconnect":
            return
        await outbox.room()
        await protocol.handle(message.get("text") or message.get("bytes") or "")


async def _drain(protocol: Protocol, draining: asyncio.Event) -> None:
    """The gateway is about to end: this session too, when its answer is complete."""
    await draining.wait()
    while protocol.busy:
        await asyncio.sleep(0.05)
    raise _Ended("the gateway is shutting down; connect again", "shutting_down", _GOING_AWAY)


async def _close(websocket: WebSocket, ended: _Ended | None, close_code: int) -> None:
    """Close a connection whose client may be gone, or not read."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError), anyio.move_on_after(_LAST_EVENT_S):
        if ended is not None:
            await websocket.send_json(ended.event)
        await websocket.close(close_code)
