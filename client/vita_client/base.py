"""What the clients for threads and for asyncio share: the connection, and one running stream."""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from vita_audio.contract.fields import RequestFields
from vita_audio.contract.messages import Status
from vita_client.channel import DEFAULT_TIMEOUT_S, DEFAULT_URL, Connection, Tls
from vita_client.errors import (
    ClientClosed,
    ClientError,
    StreamBroken,
    StreamCancelled,
    from_message,
    from_rpc,
    from_status,
)
from vita_client.events import Event, Metrics, StatusUpdate
from vita_client.request import Request, build_request, check_timeout
from vita_client.turns import Turns
from vita_client.wire import infer_request, read_response

if TYPE_CHECKING:
    from typing_extensions import Unpack


StreamT = TypeVar("StreamT", bound="StreamBase")

#: For a question for readiness at the end of the time there is to wait: also a near server takes some milliseconds.
_LEAST_ANSWER_S = 0.1


@dataclass(frozen=True, slots=True)
class Health:
    """`server`: it answers and is ready. `model`: the ensemble is loaded and ready. `reason` is empty when both are."""

    server: bool
    model: bool
    reason: str = ""

    @property
    def ready(self) -> bool:
        return self.server and self.model


class ClientBase(Generic[StreamT]):
    """One connection, opened by the first call. `_library` is `grpc` or `grpc.aio`."""

    _library: ClassVar[Any]
    _stream_type: type[StreamT]

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
        self._channel: Any = None
        # Reentrant: a handler of a signal may close the client while its channel is opened.
        self._closed, self._opening = False, threading.RLock()
        self._streams: weakref.WeakSet[StreamT] = weakref.WeakSet()

    def _stub(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        with self._opening:
            self._must_be_open()
            if self._channel is None:
                url, options = self.connection.url, self.connection.options()
                if self._credentials is None:
                    self._channel = self._library.insecure_channel(url, options=options)
                else:
                    self._channel = self._library.secure_channel(url, self._credentials, options=options)
                self._must_be_open()
            return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def _shut(self) -> Any:
        """No more calls; the channel, to be closed, None where none was opened."""
        with self._opening:
            self._closed = True
        return self._channel

    def _must_be_open(self) -> None:
        if self._closed:
            raise ClientClosed("this client is closed; open another one")

    def _call(self, method: Any, message: Any, **options: Any) -> Any:
        """Begin a call; one that another thread's `close` was ahead of has not begun."""
        try:
            return method(message, **options)
        except (ValueError, grpc.aio.UsageError):
            self._must_be_open()
            raise

    def stream(
        self,
        text: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> StreamT:
        """Check a request, send it, and return its stream at once; fields as in `build_request`.

        With asyncio, call it in a running loop; a file is read and resampled here: to keep the loop free, do that in a
        thread with `build_request`, and `send`.

        Args:
            timeout_s: deadline of the whole stream, in seconds. The server stops working on it then, too.
            headers: for this call only, such as `traceparent`.

        Raises:
            InvalidRequest: a field is wrong; nothing was sent.
            ClientClosed: after `close()`.
        """
        return self.send(build_request(text, **fields), timeout_s=timeout_s, headers=headers)

    def send(
        self,
        request: Request,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        turns: Turns | None = None,
    ) -> StreamT:
        """`stream()` for a request that is checked already (and may be sent many times). `turns`: of a conversation."""
        message = infer_request(request, uuid.uuid4().hex, self.connection.model)
        metadata, deadline_s = self.connection.metadata(headers), check_timeout(timeout_s)
        stub, start_s = self._stub(), time.perf_counter()
        call = self._call(stub.ModelStreamInfer, iter((message,)), timeout=deadline_s, metadata=metadata)
        stream = self._stream_type(self, call, deadline_s, start_s, turns)
        self._streams.add(stream)
        return stream

    def _readiness(self, end_s: float) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Calls that ask whether server and model are ready; nothing is waited for after `end_s` (time.monotonic)."""
        stub, model = self._stub(), service_pb2.ModelReadyRequest(name=self.connection.model)

        def options() -> dict[str, Any]:
            left_s = max(end_s - time.monotonic(), _LEAST_ANSWER_S)
            return {"timeout": min(left_s, self.connection.connect_timeout_s), "metadata": self.connection.metadata()}

        return (
            lambda: self._call(stub.ServerReady, service_pb2.ServerReadyRequest(), **options()),
            lambda: self._call(stub.ModelReady, model, **options()),
        )

    def _health(self, server: bool, model: bool) -> Health:
        """What the answers mean."""
        reason, url = "", self.connection.url
        if not server:
            reason = f"the server at {url} is not ready"
        elif not model:
            reason = f"the server at {url} has no model {self.connection.model} ready"
        return Health(server, model, reason)

    def _no_health(self, error: grpc.RpcError, asked_s: float) -> Health:
        """What it means that there was no answer since `asked_s` (time.monotonic)."""
        url, waited_s = self.connection.route, time.monotonic() - asked_s
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Health(False, False, f"no answer from {url} in {waited_s:.1f} s")
        reason = from_rpc(error.code(), error.details(), url=url, timeout_s=waited_s, responses=0)
        return Health(False, False, str(reason))


class StreamBase:
    """Reads responses into events, keeps the numbers, and turns every way a stream can end into one error or none.

    All times count from the moment the request was sent. Not thread safe but for `cancel`; one reader.
    """

    def __init__(
        self, client: ClientBase[Any], call: Any, timeout_s: float, start_s: float, turns: Turns | None = None
    ) -> None:
        self._client, self._call, self._timeout_s, self._start_s = client, call, timeout_s, start_s
        self._url = client.connection.route
        self._turns = turns
        # No event comes after the end of its turn, which another thread's `cancel` may bring. Reentrant: a handler of a
        # signal may, too.
        self._turn_lock = threading.RLock()
        self._pending: deque[Event] = deque()
        self._over = self._cancelled = False
        self._status: Status | None = None
        self._failure: ClientError | None = None
        # The failure is an error message: the call must then be read to its end, which follows at once. tritonserver
        # 2.51 never frees a request whose call is cancelled after such a message.
        self._refused = False
        self._end_s: float | None = None
        self._metrics = Metrics()

    @property
    def status(self) -> Status | None:
        """The last status the server sent."""
        return self._status

    @property
    def cancelled(self) -> bool:
        """True after `cancel()`."""
        return self._cancelled

    def cancel(self) -> None:
        """Stop: the call is cancelled on the server and the iteration ends. May be called more than once, from any
        thread (of an `AsyncStream`: from its loop's only).
        """
        self._cancelled = True
        self._call.cancel()
        self._end_turn()

    def _end_turn(self) -> None:
        """Once: a stream that is read to its end after its `cancel` must not end the turn after it."""
        with self._turn_lock:
            turns, self._turns = self._turns, None
            if turns is not None:
                turns.end()

    @property
    def metrics(self) -> Metrics:
        """The numbers so far."""
        return replace(self._metrics, elapsed_ms=self._since_start_ms(self._end_s))

    def _since_start_ms(self, moment_s: float | None = None) -> float:
        return ((moment_s or time.perf_counter()) - self._start_s) * 1e3

    def _must_end(self) -> bool:
        """Nothing more is to be read: cancelled, or the last status was a failure."""
        return self._cancelled or (self._failure is not None and not self._refused)

    def _read(self, message: service_pb2.ModelStreamInferResponse) -> None:
        """Events of one message into `_pending`; `_failure` is set when the stream is over because of it."""
        at_ms = self._since_start_ms()
        response = read_response(message)
        if response.error:
            self._failure, self._refused = from_message(response.error, self._url), True
        elif response.events:
            self._metrics.responses += 1
            for event in response.events:
                self._metrics.add(event, at_ms)
                with self._turn_lock:
                    if self._turns is not None and not self._cancelled:
                        self._turns.event(event)
                if isinstance(event, StatusUpdate):
                    self._status, self._failure = event.status, from_status(event.status)
            self._pending.extend(response.events)

    def _end(self, error: ClientError | grpc.RpcError | None) -> None:
        """The call is over, with `error` or with OK. Raises what the caller is to see, unless the stream was cancelled.

        After a final status or an error message the way the call ended means nothing.
        """
        self._over = True
        self._end_s = self._end_s or time.perf_counter()
        self._end_turn()
        self._call.cancel()  # no effect on a call that is over
        if self._refused or (self._status is not None and self._status.final):
            error = error if isinstance(error, ClientError) else self._failure
        elif error is None:
            error = StreamBroken(
                f"the stream from {self._url} ended without a final status after {self._metrics.responses} responses"
            )
        elif isinstance(error, grpc.RpcError):
            code, details, came = error.code(), error.details(), self._metrics.responses
            if code is grpc.StatusCode.CANCELLED and self._client._closed:
                error = StreamCancelled("the client was closed")
            else:
                error = from_rpc(code, details, url=self._url, timeout_s=self._timeout_s, responses=came)
        if error is not None and not self._cancelled:
            raise error
