"""The asyncio client: `AsyncClient` and `AsyncStream`, the same as `client.py` with `async` before it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING

import grpc

from vita_audio.contract.fields import RequestFields
from vita_client.base import ClientBase, Health, StreamBase
from vita_client.channel import DEFAULT_TIMEOUT_S
from vita_client.conversation import AsyncConversation
from vita_client.errors import NOT_READY, ClientError, ServerUnavailable, StreamCancelled
from vita_client.events import Collector, Event, Reply
from vita_client.reading import AsyncReading
from vita_client.request import check_timeout
from vita_client.tasks import task_is_cancelled

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class AsyncStream(StreamBase, AsyncIterator[Event]):
    """One running request; as `Stream`. Cancelling the task that reads it cancels the stream on the server too."""

    def __del__(self) -> None:
        # A loop left by `break` drops its stream: what still runs must end on the server. For threads grpc does that.
        if not self._over:
            self._call.cancel()

    async def collect(self) -> Reply:
        """Everything from here to the end of the stream."""
        collector = Collector()
        async for event in self:
            collector.add(event)
        return collector.reply(self.status, self.metrics)

    async def __anext__(self) -> Event:
        while not self._over:
            if self._pending and not self._cancelled:
                return self._pending.popleft()
            await self._receive()
        raise StopAsyncIteration

    async def _receive(self) -> None:
        """Wait for the next response: events into `_pending`, or the end of the stream."""
        if self._must_end():
            return self._end(self._failure)
        try:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                self._end(None)
            else:
                self._read(message)
        except (ClientError, grpc.RpcError) as error:
            self._end(error)
        except asyncio.CancelledError:
            # grpc.aio raises this for a cancelled call and for a cancelled task alike.
            if task_is_cancelled() or not (self._cancelled or self._client._closed):
                self.cancel()
                raise
            self._end(StreamCancelled("the client was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self._over:
            self.cancel()


class AsyncClient(ClientBase[AsyncStream]):
    """A connection to one server, for asyncio; arguments and errors as `Client`. Made anywhere, used in one loop.

    Example::

        async with AsyncClient("localhost:8001") as client:
            async for event in client.stream("Hello there.", task="tts"):
                ...
    """

    _library, _stream_type = grpc.aio, AsyncStream

    async def collect(
        self,
        text: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> Reply:
        """As `Client.collect`."""
        async with self.stream(text, timeout_s=timeout_s, headers=headers, **fields) as stream:
            return await stream.collect()

    def conversation(
        self,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> AsyncConversation:
        """As `Client.conversation`."""
        return AsyncConversation(self, timeout_s=timeout_s, headers=headers, **fields)

    def read(
        self,
        text: str | Iterable[str] | AsyncIterable[str],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        total_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> AsyncReading:
        """As `Client.read`; the text may also be an async iterable of chunks, read while it is still being written."""
        return AsyncReading(self, text, timeout_s=timeout_s, total_s=total_s, headers=headers, **fields)

    async def health(self) -> Health:
        """As `Client.health`."""
        return await self._ask(math.inf)

    async def _ask(self, end_s: float) -> Health:
        asked_s, (ask_server, ask_model) = time.monotonic(), self._readiness(end_s)
        try:
            return self._health((await ask_server()).ready, (await ask_model()).ready)
        except grpc.RpcError as error:
            return self._no_health(error, asked_s)
        except asyncio.CancelledError:
            # As for a stream: of this task, or of the question, by `close`.
            if task_is_cancelled() or not self._closed:
                raise
            return Health(False, False, "the client was closed")

    async def wait_ready(self, timeout_s: float = 60.0) -> Health:
        """As `Client.wait_ready`."""
        end_s = time.monotonic() + check_timeout(timeout_s)
        while not (health := await self._ask(end_s)).ready:
            if time.monotonic() >= end_s:
                raise ServerUnavailable(f"not ready within {timeout_s:g} s: {health.reason}", code=NOT_READY)
            await asyncio.sleep(0.1)
        return health

    async def close(self) -> None:
        """As `Client.close`."""
        channel = self._shut()
        for stream in tuple(self._streams):  # grpcio before 1.82 leaves the calls of a closed channel running
            stream._call.cancel()
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
