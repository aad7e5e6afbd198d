"""The asyncio client: `AsyncClient` and `AsyncStream`, the same as `client.py` with `async` before it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from vita_audio.contract.messages import Status
from vita_client.channel import DEFAULT_TIMEOUT_S, DEFAULT_URL, Connection, Tls
from vita_client.collect import Collector
from vita_client.errors import ClientClosed, ClientError, ServerUnavailable, StreamCancelled
from vita_client.events import Event, Metrics, Reply
from vita_client.health import Health
from vita_client.progress import Progress
from vita_client.request import Request, RequestFields, build_request, check_timeout
from vita_client.wire import infer_request

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class AsyncClient:
    """A connection to one server, for asyncio; arguments and errors as `Client`. Made anywhere, used in one loop.

    Example::

        async with AsyncClient("localhost:8001") as client:
            async for event in client.stream("Hello there.", task="tts"):
                ...
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.connection = connection or Connection(url, tls=tls, headers=dict(headers or {}))
        self.connection.metadata()
        self._credentials = None if self.connection.tls is None else self.connection.tls.credentials()
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    def _stub(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        """The stub; the channel is made at the first call because it belongs to the loop running then."""
        if self._closed:
            raise ClientClosed("this client is closed; open another one")
        if self._channel is None:
            url, options = self.connection.url, self.connection.options()
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(url, options=options)
            else:
                self._channel = grpc.aio.secure_channel(url, self._credentials, options=options)
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def stream(
        self,
        text: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> AsyncStream:
        """As `Client.stream`; call it in a running loop.

        A file is read and resampled here: to keep the loop free, do that in a thread with `build_request` and `send`.
        """
        return self.send(build_request(text, **fields), timeout_s=timeout_s, headers=headers)

    def send(
        self, request: Request, *, timeout_s: float = DEFAULT_TIMEOUT_S, headers: Mapping[str, str] | None = None
    ) -> AsyncStream:
        """As `Client.send`."""
        message = infer_request(request, uuid.uuid4().hex, self.connection.model)
        metadata = self.connection.metadata(headers)
        deadline_s = check_timeout(timeout_s)
        stub = self._stub()
        progress = Progress(self.connection.url, deadline_s)
        call = stub.ModelStreamInfer(iter((message,)), timeout=deadline_s, metadata=metadata)
        return AsyncStream(call, progress, lambda: self._closed)

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

    async def health(self) -> Health:
        """As `Client.health`."""
        stub = self._stub()
        metadata, timeout_s = self.connection.metadata(), self.connection.connect_timeout_s
        try:
            server = await stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=timeout_s, metadata=metadata)
            model = await stub.ModelReady(
                service_pb2.ModelReadyRequest(name=self.connection.model), timeout=timeout_s, metadata=metadata
            )
        except grpc.RpcError as error:
            return Health.from_error(self.connection, error)
        return Health.from_answers(self.connection, server.ready, model.ready)

    async def wait_ready(self, timeout_s: float = 60.0) -> Health:
        """As `Client.wait_ready`."""
        end_s = time.monotonic() + check_timeout(timeout_s)
        while not (health := await self.health()).ready:
            if time.monotonic() >= end_s:
                raise ServerUnavailable(f"not ready within {timeout_s:g} s: {health.reason}")
            await asyncio.sleep(0.1)
        return health

    async def close(self) -> None:
        """As `Client.close`."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncStream(AsyncIterator[Event]):
    """One running request; as `Stream`. Cancelling the task that reads it cancels the stream on the server too."""

    def __init__(self, call: grpc.aio.StreamStreamCall, progress: Progress, client_closed: Callable[[], bool]) -> None:
        self._call, self._progress, self._client_closed = call, progress, client_closed
        self._pending: deque[Event] = deque()
        self._over = self._cancelled = False

    @property
    def status(self) -> Status | None:
        """The last status the server sent."""
        return self._progress.status

    @property
    def metrics(self) -> Metrics:
        """The numbers so far."""
        return self._progress.metrics()

    @property
    def cancelled(self) -> bool:
        """True after `cancel()`."""
        return self._cancelled

    def cancel(self) -> None:
        """Stop: the server is told and the iteration ends. From the loop's thread only."""
        self._cancelled = True
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
        progress = self._progress
        if self._cancelled or (progress.failure is not None and not progress.refused):
            return self._end(progress.failure)
        try:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                self._end(progress.at_end())
            else:
                self._pending.extend(progress.read(message))
        except grpc.RpcError as error:
            self._end(progress.at_error(error))
        except ClientError as error:
            self._end(error)
        except asyncio.CancelledError:
            # grpc.aio raises this for a cancelled call and for a cancelled task alike.
            if _task_is_cancelled() or not (self._cancelled or self._client_closed()):
                self.cancel()
                raise
            self._end(StreamCancelled("the client was closed"))

    def _end(self, error: ClientError | None) -> None:
        self._over = True
        self._progress.stop_clock()
        self._call.cancel()  # no effect on a call that is over
        if error is not None and not self._cancelled:
            raise error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.cancel()


def _task_is_cancelled() -> bool:
    """Whether the running task itself is being cancelled (Python 3.11 and later can tell)."""
    task = asyncio.current_task()
    cancelling = getattr(task, "cancelling", None)
    return cancelling is not None and cancelling() > 0
