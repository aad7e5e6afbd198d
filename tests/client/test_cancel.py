"""Whatever way a caller leaves a stream, the work on the server ends: the double sees the call cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from client_protocol_double import ProtocolDouble
from client_twins import run
from vita_client import (
    AsyncClient,
    AsyncStream,
    Client,
    ClientClosed,
    Connection,
    StatusUpdate,
    StreamCancelled,
    TextDelta,
    build_request,
)
from waiting import until


def seen(double: ProtocolDouble) -> bool:
    """Whether the server saw the cancel, well before the deadline of the stream."""
    return double.cancelled.wait(20)


def test_cancel_ends_the_iteration_and_reaches_the_server(double: ProtocolDouble, client: Any) -> None:
    stream = client.stream("chunks 1000 0.01")
    for event in stream:
        if isinstance(event, StatusUpdate) and event.status.index == 2:
            assert not stream.cancelled
            stream.cancel()
    assert stream.cancelled
    assert stream.status.index == 2
    assert seen(double)
    stream.cancel()
    assert list(stream) == []


def test_cancel_drops_the_events_that_have_come(client: Any) -> None:
    stream = client.stream("stall")
    assert isinstance(next(stream), TextDelta)
    stream.cancel()
    assert list(stream) == []


def test_cancel_from_another_thread_wakes_a_waiting_reader(double: ProtocolDouble, client: Any) -> None:
    stream = client.stream("stall")
    threading.Timer(0.2, stream.cancel).start()
    started_s = time.monotonic()
    events = list(stream)
    assert time.monotonic() - started_s < 20
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["one "]
    assert seen(double)


class SlowTurns:
    """Takes its time for an event, in which another thread cancels."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def event(self, event: object) -> None:
        self.calls.append("event begins")
        canceller = threading.Thread(target=self.stream.cancel)
        canceller.start()
        canceller.join(0.3)
        self.calls.append("event ends")

    def end(self) -> None:
        self.calls.append("end")

    stream: Any


def test_a_turn_does_not_end_while_an_event_of_it_is_taken(double: ProtocolDouble) -> None:
    turns: Any = SlowTurns()
    with Client(double.url) as client:
        turns.stream = client.send(build_request("stall"), turns=turns)
        list(turns.stream)
    assert turns.calls == ["event begins", "event ends", "end"]


def test_leaving_the_block_cancels(double: ProtocolDouble, client: Any) -> None:
    with client.stream("stall") as stream:
        next(stream)
    assert stream.cancelled
    assert seen(double)


def test_an_error_inside_the_block_cancels(double: ProtocolDouble, client: Any) -> None:
    with pytest.raises(ZeroDivisionError), client.stream("stall") as stream:
        _ = 1 / (next(stream) is None)
    assert seen(double)


def test_a_finished_block_cancels_nothing(double: ProtocolDouble, client: Any) -> None:
    with client.stream("chunks 2") as stream:
        list(stream)
    assert not stream.cancelled
    time.sleep(0.2)
    assert not double.cancelled.is_set()


def test_a_loop_left_by_break_cancels(double: ProtocolDouble, client: Any) -> None:
    for _ in client.stream("stall"):
        break
    assert seen(double)


def test_a_stream_dropped_unread_cancels(double: ProtocolDouble, client: Any) -> None:
    stream = client.stream("hang")
    deadline_s = time.monotonic() + 20
    while not double.requests:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    del stream
    gc.collect()
    assert seen(double)


def test_a_client_dropped_without_close_cancels(double: ProtocolDouble, connect: Callable[..., Any]) -> None:
    client = connect(double.url)
    stream = client.stream("stall")
    next(stream)
    del client, stream
    gc.collect()
    assert seen(double)


def test_a_generator_closed_early_cancels(double: ProtocolDouble, client: Any) -> None:
    def texts() -> Any:
        with client.stream("stall") as stream:
            yield from stream

    generator = texts()
    next(generator)
    generator.close()
    assert seen(double)


def test_closing_the_client_ends_its_streams(double: ProtocolDouble, connect: Callable[..., Any]) -> None:
    client = connect(double.url)
    stream = client.stream("stall")
    next(stream)
    threading.Timer(0.1, client.close).start()
    with pytest.raises(StreamCancelled):
        list(stream)
    assert seen(double)
    for call in (lambda: client.stream("chunks 1"), lambda: client.collect("chunks 1"), client.health):
        with pytest.raises(ClientClosed, match="open another one"):
            call()
    client.close()


def test_leaving_the_block_of_the_client_closes_it(double: ProtocolDouble, connect: Callable[..., Any]) -> None:
    with connect(double.url) as client:
        next(client.stream("stall"))
    with pytest.raises(ClientClosed):
        client.stream("chunks 1")
    assert seen(double)
    with connect(double.url):
        pass  # never connected, closes all the same


@pytest.mark.parametrize(("question", "before"), [("stream", 0), ("health", 0), ("health", 1)])
def test_a_call_that_the_close_was_ahead_of_is_refused(
    double: ProtocolDouble, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, question: str, before: int
) -> None:
    """`close` of another thread, or, with asyncio, of another task between the two questions of `health`."""
    client = connect(double.url)
    opened = getattr(client, "twin", client)
    begin, begun = opened._call, list[str]()

    def close_and_begin(*arguments: Any, **options: Any) -> Any:
        if len(begun) == before:
            closing = opened.close()
            if closing is not None:
                with contextlib.suppress(StopIteration):
                    closing.send(None)
        begun.append(question)
        return begin(*arguments, **options)

    monkeypatch.setattr(opened, "_call", close_and_begin)
    with pytest.raises(ClientClosed, match="open another one"):
        client.stream("chunks 1") if question == "stream" else client.health()
    assert len(begun) == before + 1


def test_a_channel_that_is_being_opened_is_closed(
    double: ProtocolDouble, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, options, closing = connect(double.url), Connection.options, list[threading.Thread]()

    def options_meanwhile(connection: Connection) -> Any:
        closing.append(threading.Thread(target=client.close))
        closing[0].start()
        closing[0].join(0.2)
        return options(connection)

    monkeypatch.setattr(Connection, "options", options_meanwhile)
    with pytest.raises((ClientClosed, StreamCancelled)):
        client.stream("hang", timeout_s=5).collect()
    closing[0].join(20)
    until(lambda: double.running == 0)


def test_a_handler_of_a_signal_may_close_while_the_channel_is_opened(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, options = Client(double.url), Connection.options

    def options_meanwhile(connection: Connection) -> Any:
        client.close()
        return options(connection)

    monkeypatch.setattr(Connection, "options", options_meanwhile)
    with pytest.raises(ClientClosed):
        client.stream("chunks 1")
    assert double.requests == []


async def _break(client: AsyncClient) -> None:
    async for _ in client.stream("stall"):
        break


async def _close_generator(client: AsyncClient) -> None:
    async def texts() -> AsyncIterator[object]:
        async with client.stream("stall") as stream:
            async for event in stream:
                yield event

    generator = texts()
    await anext(generator)
    await generator.aclose()  # type: ignore[attr-defined]


async def _cancel_task(client: AsyncClient) -> None:
    stream = client.stream("stall")
    task = asyncio.create_task(stream.collect())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.cancelled


async def _cancel_task_between_reads(client: AsyncClient) -> None:
    async def slow() -> None:
        async with client.stream("stall") as stream:
            await anext(stream)
            await asyncio.sleep(60)

    task = asyncio.create_task(slow())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _cancel_bare_task(client: AsyncClient) -> None:
    async def bare() -> None:
        async for _ in client.stream("stall"):
            pass

    task = asyncio.create_task(bare())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _time_out(client: AsyncClient) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.collect("stall"), 0.3)


@pytest.mark.parametrize(
    "leave", [_break, _close_generator, _cancel_task, _cancel_task_between_reads, _cancel_bare_task, _time_out]
)
def test_ways_to_leave_that_only_asyncio_has(double: ProtocolDouble, leave: Callable[[AsyncClient], Any]) -> None:
    async def scenario() -> bool:
        async with AsyncClient(double.url) as client:
            await leave(client)
            return await asyncio.to_thread(double.cancelled.wait, 20)

    assert run(scenario())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task cannot tell there that it is being cancelled")
def test_a_task_cancelled_twice_ends_as_cancelled(double: ProtocolDouble) -> None:
    """A stream that its own `cancel()` ended must not swallow the cancelling of the task."""

    async def scenario() -> None:
        async with AsyncClient(double.url) as client:
            stream = client.stream("stall")
            task = asyncio.create_task(stream.collect())
            await asyncio.sleep(0.3)
            task.cancel()
            stream.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(scenario())
    assert seen(double)


def test_a_stream_that_outlives_its_loop_is_dropped_in_silence(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    async def scenario() -> Any:
        stream = AsyncClient(double.url).stream("stall")
        await anext(stream)
        return stream

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(scenario())
    loop.close()
    del stream
    gc.collect()
    assert [str(complaint.exc_value) for complaint in complaints if complaint.object == AsyncStream.__del__] == []
