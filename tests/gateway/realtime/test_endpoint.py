"""The WebSocket itself: the openai SDK over a real server, and clients that do not read, leave, or send nonsense."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from client_protocol_double import ProtocolDouble
from gateway.realtime import endpoint
from gateway.settings import Settings
from gateway_runs import running
from realtime_session import check_event, pcm24, question
from waiting import until


def address(gateway_url: str, query: str = "?model=vita-audio") -> str:
    return f"{gateway_url.replace('http', 'ws')}/v1/realtime{query}"


async def receive(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next event of a kind; every event is checked."""
    while True:
        event: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 20))
        check_event(event)
        if event["type"] == kind:
            return event


async def ask(socket: ClientConnection, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    item = {"type": "message", "role": "user", "content": content}
    await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
    await socket.send(json.dumps({"type": "response.create"}))


@pytest.mark.server
def test_a_spoken_question_is_answered_aloud_to_the_openai_sdk(real_gateway_url: str) -> None:
    async def talk() -> tuple[str, bytes, list[str]]:
        client = AsyncOpenAI(api_key="none", base_url=f"{real_gateway_url}/v1")
        sound, kinds = b"", list[str]()
        async with client, client.realtime.connect(model="gpt-realtime") as connection:
            transcription: Any = {"input": {"transcription": {"model": "whisper-1"}}}
            await connection.session.update(session={"type": "realtime", "audio": transcription})
            speech = pcm24(question())
            for at in range(0, len(speech), 4800):
                await connection.input_audio_buffer.append(audio=base64.b64encode(speech[at : at + 4800]).decode())
            async for event in connection:
                kinds.append(event.type)
                if event.type == "response.output_audio.delta":
                    sound += base64.b64decode(event.delta)
                if event.type == "response.done":
                    assert event.response.status in ("completed", "incomplete"), event.response
                    [item] = event.response.output or []
                    [content] = item.content or []  # type: ignore[union-attr]
                    return content.transcript or "", sound, kinds  # type: ignore[union-attr]
        raise AssertionError(kinds)

    transcript, sound, kinds = asyncio.run(asyncio.wait_for(talk(), 120))
    assert len(sound) > 4800
    assert np.abs(np.frombuffer(sound, "<i2")).max() > 0
    assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.created")
    assert isinstance(transcript, str)


def test_what_is_said_over_the_socket_is_answered(gateway_url: str) -> None:
    async def talk() -> None:
        async with connect(address(gateway_url), subprotocols=["realtime"]) as connection:  # type: ignore[list-item]
            assert connection.subprotocol == "realtime"
            assert (await receive(connection, "session.created"))["session"]["model"] == "vita-audio"
            await ask(connection, "turn 2")
            assert (await receive(connection, "response.done"))["response"]["status"] == "completed"
            await connection.send(b'{"type": "nonsense"}')
            assert (await receive(connection, "error"))["error"]["code"] == "unknown_event"

    asyncio.run(talk())


def test_an_intent_makes_a_transcription_session(gateway_url: str) -> None:
    async def talk() -> None:
        async with connect(address(gateway_url, "?intent=transcription")) as connection:
            assert (await receive(connection, "session.created"))["session"]["type"] == "transcription"

    asyncio.run(talk())


def test_a_client_that_leaves_frees_the_server(gateway_url: str, double: ProtocolDouble) -> None:
    async def talk() -> None:
        async with connect(address(gateway_url)) as connection:
            await ask(connection, "turn 10000 0.01")
            await receive(connection, "response.output_audio.delta")

    asyncio.run(talk())
    until(double.cancelled.is_set)


def test_a_socket_that_is_cut_frees_the_server(gateway_url: str, double: ProtocolDouble) -> None:
    async def talk() -> None:
        connection = await connect(address(gateway_url))
        await ask(connection, "turn 10000 0.01")
        await receive(connection, "response.output_audio.delta")
        connection.transport.abort()

    asyncio.run(talk())
    until(double.cancelled.is_set)


def test_a_half_closed_socket_frees_the_server(gateway_url: str, double: ProtocolDouble) -> None:
    async def talk() -> None:
        connection = await connect(address(gateway_url))
        await ask(connection, "turn 10000 0.01")
        await receive(connection, "response.output_audio.delta")
        connection.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        await asyncio.to_thread(until, double.cancelled.is_set)
        connection.transport.abort()

    asyncio.run(talk())


def test_a_client_that_never_reads_is_left(
    gateway_url: str, double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(endpoint.Outbox):
        def __init__(self) -> None:
            super().__init__(max_bytes=1 << 16, patience_s=1.0)

    monkeypatch.setattr(endpoint, "Outbox", Impatient)

    async def read_all(connection: ClientConnection) -> None:
        while True:
            await asyncio.wait_for(connection.recv(), 20)

    async def talk() -> None:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        narrow.connect(("127.0.0.1", int(gateway_url.rpartition(":")[2])))
        connection = await connect(address(gateway_url), max_queue=1, sock=narrow, compression=None)
        await ask(connection, "turn 100000")
        await asyncio.to_thread(until, double.cancelled.is_set, 60)
        with pytest.raises(ConnectionClosed):
            await read_all(connection)

    asyncio.run(talk())


def test_a_session_ends_when_nothing_is_sent(gateway_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "IDLE_S", 0.3)

    async def talk() -> None:
        async with connect(address(gateway_url)) as connection:
            assert (await receive(connection, "error"))["error"]["code"] == "session_idle"
            with pytest.raises(ConnectionClosed) as closed:
                await connection.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001

    asyncio.run(talk())


def test_a_session_ends_after_its_longest_time(gateway_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_S", 0.3)

    async def talk() -> None:
        async with connect(address(gateway_url)) as connection:
            assert (await receive(connection, "error"))["error"]["code"] == "session_expired"
            with pytest.raises(ConnectionClosed):
                await connection.recv()

    asyncio.run(talk())


@pytest.mark.parametrize("response", [{}, {"conversation": "none"}])
def test_a_drain_waits_for_every_response(double: ProtocolDouble, response: dict[str, Any]) -> None:
    async def talk(server: Any) -> None:
        async with connect(address(f"http://127.0.0.1:{server.port}")) as connection:
            content = [{"type": "input_text", "text": "turn 20 0.05"}]
            item = {"type": "message", "role": "user", "content": content}
            await connection.send(json.dumps({"type": "conversation.item.create", "item": item}))
            await connection.send(json.dumps({"type": "response.create", "response": response}))
            await receive(connection, "response.output_audio.delta")
            server.handle_exit(signal.SIGTERM, None)
            done = await receive(connection, "response.done")
            assert done["response"]["status"] == "completed"
            assert (await receive(connection, "error"))["error"]["code"] == "shutting_down"

    with running(Settings(servers=(double.url,))) as server:
        asyncio.run(talk(server))
