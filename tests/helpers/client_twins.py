"""Puts `AsyncClient` behind the interface of `Client`, so that one suite of tests runs against both."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from vita_client import AsyncClient, AsyncConversation, AsyncReading, AsyncStream, Client, Event, Health, Reply, Request

T = TypeVar("T")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop of all asyncio tests: grpc.aio is at its best with one loop in a process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="test-loop", daemon=True).start()
    return loop


def run(work: Coroutine[Any, Any, T], timeout_s: float = 60.0) -> T:
    """The result of a coroutine on the loop of the tests."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result(timeout_s)


def _call(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The result of a plain function called on the loop."""

    async def work() -> T:
        return function(*arguments, **options)

    return run(work())


class TwinStream(Iterator[Event]):
    """`AsyncStream` as a `Stream`."""

    def __init__(self, stream: AsyncStream) -> None:
        self.twin = stream

    def __next__(self) -> Event:
        async def following() -> Event | None:
            return await anext(self.twin, None)

        event = run(following())
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> TwinStream:
        run(self.twin.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self.twin.__aexit__(*error))

    def collect(self) -> Reply:
        return run(self.twin.collect())

    def cancel(self) -> None:
        _call(self.twin.cancel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.twin, name)


class TwinReading(TwinStream):
    """`AsyncReading` as a `Reading`."""

    def __init__(self, reading: AsyncReading) -> None:
        self.twin = reading  # type: ignore[assignment]


class TwinConversation:
    """`AsyncConversation` as a `Conversation`."""

    def __init__(self, conversation: AsyncConversation) -> None:
        self.twin = conversation

    def append_audio(self, *arguments: Any, **options: Any) -> None:
        run(self.twin.append_audio(*arguments, **options))

    def respond(self, *arguments: Any, **options: Any) -> TwinStream:
        return TwinStream(run(self.twin.respond(*arguments, **options)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.twin, name)


class TwinClient:
    """`AsyncClient` as a `Client`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.twin = AsyncClient(*arguments, **options)

    def stream(self, *arguments: Any, **options: Any) -> TwinStream:
        return TwinStream(_call(self.twin.stream, *arguments, **options))

    def send(self, request: Request, **options: Any) -> TwinStream:
        return TwinStream(_call(self.twin.send, request, **options))

    def collect(self, *arguments: Any, **options: Any) -> Reply:
        return run(self.twin.collect(*arguments, **options))

    def conversation(self, **options: Any) -> TwinConversation:
        return TwinConversation(self.twin.conversation(**options))

    def read(self, *arguments: Any, **options: Any) -> TwinReading:
        return TwinReading(_call(self.twin.read, *arguments, **options))

    def health(self) -> Health:
        return run(self.twin.health())

    def wait_ready(self, *arguments: Any, **options: Any) -> Health:
        return run(self.twin.wait_ready(*arguments, **options))

    def close(self) -> None:
        run(self.twin.close())

    def __enter__(self) -> TwinClient:
        run(self.twin.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self.twin.__aexit__(*error))


#: How to open a client, by the name of its kind.
TWINS: dict[str, Callable[..., Any]] = {"threads": Client, "asyncio": TwinClient}
