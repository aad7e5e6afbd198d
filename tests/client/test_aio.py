"""The asyncio client against a protocol double: the same behaviour as the synchronous one, and task cancelling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest

from client_protocol_double import ProtocolDouble, chunk_pcm, chunk_text
from vita_audio.contract.errors import ServerFull, to_wire
from vita_client import (
    AsyncClient,
    BadResponse,
    ClientClosed,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    Pcm,
    RequestRejected,
    ServerUnavailable,
    StatusUpdate,
    StreamBroken,
    StreamCancelled,
    TextDelta,
    TokensDelta,
)


@pytest.fixture
def double() -> Iterator[ProtocolDouble]:
    server = ProtocolDouble()
    yield server
    server.close()


async def _reached(double: ProtocolDouble) -> bool:
    """Whether the server saw the cancel."""
    return await asyncio.to_thread(double.cancelled.wait, 5)


def test_events_metrics_and_collect(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            async with client.stream("chunks 3 0.02", seed=2) as stream:
                events = [event async for event in stream]
            assert [type(event) for event in events] == [TextDelta, TokensDelta, Pcm, StatusUpdate] * 3
            assert stream.status is not None
            assert stream.status.state == "done"
            assert stream.metrics.ttfa_ms is not None
            assert stream.metrics.audio_s == pytest.approx(0.3)
            reply = await client.collect("chunks 3", seed=2)
            assert reply.text == "".join(chunk_text(2, i) for i in range(3))
            np.testing.assert_array_equal(reply.pcm, np.concatenate([chunk_pcm(2, i) for i in range(3)]))

    asyncio.run(scenario())


def test_concurrent_streams_on_one_connection(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            replies = await asyncio.gather(*(client.collect("chunks 6 0.01", seed=seed) for seed in range(12)))
        for seed, reply in enumerate(replies):
            assert reply.text == "".join(chunk_text(seed, i) for i in range(6))
            np.testing.assert_array_equal(reply.pcm, np.concatenate([chunk_pcm(seed, i) for i in range(6)]))

    asyncio.run(scenario())


def test_cancel_ends_the_iteration_and_reaches_the_server(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            stream = client.stream("stall")
            asyncio.get_running_loop().call_later(0.2, stream.cancel)
            started_s = time.monotonic()
            events = [event async for event in stream]
            assert time.monotonic() - started_s < 3
            assert isinstance(events[0], TextDelta)
            assert stream.cancelled
            assert await _reached(double)

    asyncio.run(scenario())


def test_leaving_the_context_cancels(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            async with client.stream("stall") as stream:
                await anext(stream)
            assert await _reached(double)

    asyncio.run(scenario())


def test_cancelling_the_task_cancels_the_stream(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            task = asyncio.create_task(client.collect("stall"))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await _reached(double)

    asyncio.run(scenario())


def test_a_timeout_of_the_caller_cancels_the_stream(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.collect("stall"), 0.2)
            assert await _reached(double)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("hang", DeadlineExceeded, "within 0.5 s"),
        ("fail", GenerationFailed, "the flow engine broke"),
        ("short", StreamBroken, "without a final status"),
        ("server-cancels", StreamCancelled, "shutting down"),
        ("bad-tensor utf8", BadResponse, "UTF-8"),
        ("abort INVALID_ARGUMENT TEXT: too long", RequestRejected, "TEXT: too long"),
        (f"abort UNAVAILABLE {to_wire(ServerFull(1, 1))}", ServerUnavailable, "^server is full"),
        ("message-only [request id: 7] inference input 'TOP_K' wrong", RequestRejected, "TOP_K"),
    ],
)
def test_typed_errors(double: ProtocolDouble, script: str, error: type[Exception], words: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            await client.collect(script, timeout_s=0.5)

    with pytest.raises(error, match=words):
        asyncio.run(scenario())


def test_bad_input_is_refused_before_sending(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            await client.collect("hello", top_p=2.0)

    with pytest.raises(InvalidRequest, match="TOP_P"):
        asyncio.run(scenario())
    assert double.requests == []


def test_health_and_waiting_for_it(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            assert (await client.health()).ready
            double.ready = False
            assert "not ready" in (await client.health()).reason
            with pytest.raises(ServerUnavailable, match="not ready within"):
                await client.wait_ready(0.2)
            asyncio.get_running_loop().call_later(0.2, setattr, double, "ready", True)
            assert (await client.wait_ready(5)).ready
        async with AsyncClient("localhost:1") as client:
            assert "refused" in (await client.health()).reason

    asyncio.run(scenario())


def test_closing_the_client_ends_its_streams(double: ProtocolDouble) -> None:
    async def scenario() -> None:
        client = AsyncClient(double.url)
        stream = client.stream("stall")
        await anext(stream)
        closing = asyncio.create_task(client.close())
        with pytest.raises(StreamCancelled):
            async for _ in stream:
                pass
        await closing
        assert await _reached(double)
        with pytest.raises(ClientClosed):
            client.stream("chunks 1")

    asyncio.run(scenario())
