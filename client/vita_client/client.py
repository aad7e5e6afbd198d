"""The synchronous client: `Client` holds one connection, `Stream` is one running request.

Any number of streams may run at once on one client, from any threads. It also runs under gevent (call
`grpc.experimental.gevent.init_gevent()` first): there is no thread, queue or callback of its own in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import grpc

from vita_audio.contract.fields import RequestFields
from vita_client.base import ClientBase, Health, StreamBase
from vita_client.channel import DEFAULT_TIMEOUT_S
from vita_client.conversation import Conversation
from vita_client.errors import NOT_READY, ClientError, ServerUnavailable
from vita_client.events import Collector, Event, Reply
from vita_client.reading import Reading
from vita_client.request import check_timeout

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class Stream(StreamBase, Iterator[Event]):
    """One running request: an iterator of events and a context manager that cancels what is left at its end.

    Iterating raises, after the events that came before it:
        RequestRejected: the server found the request wrong.
        ServerUnavailable: no server, or a full one. StreamBroken: it went away in the middle.
        DeadlineExceeded, StreamCancelled, GenerationFailed, AccessDenied, BadResponse: what they say.
    After its own `cancel()` a stream just ends.
    """

    def collect(self) -> Reply:
        """Everything from here to the end of the stream."""
        collector = Collector()
        for event in self:
            collector.add(event)
        return collector.reply(self.status, self.metrics)

    def __next__(self) -> Event:
        while not self._over:
            if self._pending and not self._cancelled:
                return self._pending.popleft()
            self._receive()
        raise StopIteration

    def _receive(self) -> None:
        """Wait for the next response: events into `_pending`, or the end of the stream."""
        if self._must_end():
            return self._end(self._failure)
        try:
            message = next(self._call, None)
            if message is None:
                self._end(None)
            else:
                self._read(message)
        except (ClientError, grpc.RpcError) as error:
            self._end(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._over:
            self.cancel()


class Client(ClientBase[Stream]):
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

    _library, _stream_type = grpc, Stream

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

    def conversation(
        self,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> Conversation:
        """Several turns; arguments as `Conversation`."""
        return Conversation(self, timeout_s=timeout_s, headers=headers, **fields)

    def read(
        self,
        text: str | Iterable[str],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        total_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> Reading:
        """Read a text of any length aloud, sentence by sentence, as one stream.

        Args:
            text: whole, or in chunks; for more of it the iteration waits.
            timeout_s: deadline of each sentence. total_s: of all together. headers: of each request.
            fields: as `stream`, of task tts. Equal `seed`, equal reading.

        Raises:
            InvalidRequest: a field is wrong; nothing was sent.
        """
        return Reading(self, text, timeout_s=timeout_s, total_s=total_s, headers=headers, **fields)

    def health(self) -> Health:
        """Whether the server and the model are ready; never raises for a server that is not there.

        Each of the two has `connect_timeout_s` of the connection to answer.
        """
        return self._ask(math.inf)

    def _ask(self, end_s: float) -> Health:
        asked_s, (ask_server, ask_model) = time.monotonic(), self._readiness(end_s)
        try:
            return self._health(ask_server().ready, ask_model().ready)
        except grpc.RpcError as error:
            return self._no_health(error, asked_s)

    def wait_ready(self, timeout_s: float = 60.0) -> Health:
        """Ask every 0.1 s until server and model are ready.

        Raises:
            ServerUnavailable: not ready within `timeout_s`; the text says what it was waiting for.
        """
        end_s = time.monotonic() + check_timeout(timeout_s)
        while not (health := self._ask(end_s)).ready:
            if time.monotonic() >= end_s:
                raise ServerUnavailable(f"not ready within {timeout_s:g} s: {health.reason}", code=NOT_READY)
            time.sleep(0.1)
        return health

    def close(self) -> None:
        """Close the connection; streams still running end with `StreamCancelled`."""
        if (channel := self._shut()) is not None:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
