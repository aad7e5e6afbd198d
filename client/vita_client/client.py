"""The synchronous client: `Client` holds one connection, `Stream` is one running request.

Any number of streams may run at once on one client, from any threads. It also runs under gevent (call
`grpc.experimental.gevent.init_gevent()` first): there is no thread, queue or callback of its own in it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from vita_audio.contract.messages import Status
from vita_client.channel import DEFAULT_TIMEOUT_S, DEFAULT_URL, Connection, Tls
from vita_client.collect import Collector
from vita_client.errors import ClientClosed, ClientError, ServerUnavailable
from vita_client.events import Event, Metrics, Reply
from vita_client.health import Health
from vita_client.progress import Progress
from vita_client.request import Request, RequestFields, build_request, check_timeout
from vita_client.wire import infer_request

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class Client:
    """A connection to one server.

    Example::

        with Client("localhost:8001") as client:
            for event in client.stream("Hello there.", task="tts"):
                if isinstance(event, Pcm):
                    play(event.samples)

    Args:
        url: host:port of the server's gRPC endpoint.
        tls: encrypt, and prove who we are; None is plain text.
        headers: sent with every call (`authorization`, for example).
        connection: everything else (timeouts, keepalive, limits); replaces the three above.

    Raises:
        InvalidRequest: an address, a header or a TLS file is wrong. Nothing is connected to before the first call.
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
        options = self.connection.options()
        if self.connection.tls is None:
            self._channel = grpc.insecure_channel(self.connection.url, options=options)
        else:
            credentials = self.connection.tls.credentials()
            self._channel = grpc.secure_channel(self.connection.url, credentials, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._closed = False

    def stream(
        self,
        text: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> Stream:
        """Check a request, send it, and return its stream at once; fields as in `build_request`.

        Args:
            timeout_s: deadline of the whole stream, in seconds. The server stops working on it then, too.
            headers: for this call only, such as `traceparent`.

        Raises:
            InvalidRequest: a field is wrong; nothing was sent.
            ClientClosed: after `close()`.
        """
        return self.send(build_request(text, **fields), timeout_s=timeout_s, headers=headers)

    def send(
        self, request: Request, *, timeout_s: float = DEFAULT_TIMEOUT_S, headers: Mapping[str, str] | None = None
    ) -> Stream:
        """`stream()` for a request that is checked already (and may be sent many times)."""
        message = infer_request(request, uuid.uuid4().hex, self.connection.model)
        metadata = self.connection.metadata(headers)
        deadline_s = check_timeout(timeout_s)
        if self._closed:
            raise ClientClosed("this client is closed; open another one")
        progress = Progress(self.connection.url, deadline_s)
        return Stream(self._stub.ModelStreamInfer(iter((message,)), timeout=deadline_s, metadata=metadata), progress)

    def collect(
        self,
        text: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> Reply:
        """`stream()` to its end: the whole text, the whole sound, the final status and the measured times.

        Raises:
            VitaError: any way a stream can fail; see `Stream`.
        """
        with self.stream(text, timeout_s=timeout_s, headers=headers, **fields) as stream:
            return stream.collect()

    def health(self) -> Health:
        """Whether the server and the model are ready; never raises for a server that is not there."""
        if self._closed:
            raise ClientClosed("this client is closed; open another one")
        metadata, timeout_s = self.connection.metadata(), self.connection.connect_timeout_s
        try:
            server = self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=timeout_s, metadata=metadata)
            model = self._stub.ModelReady(
                service_pb2.ModelReadyRequest(name=self.connection.model), timeout=timeout_s, metadata=metadata
            )
        except grpc.RpcError as error:
            return Health.from_error(self.connection, error)
        return Health.from_answers(self.connection, server.ready, model.ready)

    def wait_ready(self, timeout_s: float = 60.0) -> Health:
        """Ask every 0.1 s until server and model are ready.

        Raises:
            ServerUnavailable: not ready within `timeout_s`; the text says what it was waiting for.
        """
        end_s = time.monotonic() + check_timeout(timeout_s)
        while not (health := self.health()).ready:
            if time.monotonic() >= end_s:
                raise ServerUnavailable(f"not ready within {timeout_s:g} s: {health.reason}")
            time.sleep(0.1)
        return health

    def close(self) -> None:
        """Close the connection; streams still running end with `StreamCancelled`."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Stream(Iterator[Event]):
    """One running request: an iterator of events and a context manager that cancels what is left at its end.

    Iterating raises, after the events that came before it:
        RequestRejected: the server found the request wrong.
        ServerUnavailable: no server, or a full one. StreamBroken: it went away in the middle.
        DeadlineExceeded, StreamCancelled, GenerationFailed, AccessDenied, BadResponse: what they say.
    After its own `cancel()` a stream just ends.
    """

    def __init__(self, call: grpc.Call, progress: Progress) -> None:
        self._call, self._progress = call, progress
        self._pending: deque[Event] = deque()
        self._over = False
        self._cancelled = threading.Event()

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
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop: the server is told and the iteration ends. May be called from any thread, more than once."""
        self._cancelled.set()
        self._call.cancel()

    def collect(self) -> Reply:
        """Everything from here to the end of the stream."""
        collector = Collector()
        for event in self:
            collector.add(event)
        return collector.reply(self.status, self.metrics)

    def __next__(self) -> Event:
        while not self._over:
            if self._pending and not self._cancelled.is_set():
                return self._pending.popleft()
            self._receive()
        raise StopIteration

    def _receive(self) -> None:
        """Wait for the next response: events into `_pending`, or the end of the stream."""
        progress = self._progress
        if self._cancelled.is_set() or (progress.failure is not None and not progress.refused):
            return self._end(progress.failure)
        try:
            self._pending.extend(progress.read(next(self._call)))
        except StopIteration:
            self._end(progress.at_end())
        except grpc.RpcError as error:
            self._end(progress.at_error(error))
        except ClientError as error:
            self._end(error)

    def _end(self, error: ClientError | None) -> None:
        self._over = True
        self._progress.stop_clock()
        self._call.cancel()  # no effect on a call that is over
        if error is not None and not self._cancelled.is_set():
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.cancel()
