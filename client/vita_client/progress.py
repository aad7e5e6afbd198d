"""What is known of one running stream, the same for sync and asyncio: last status, measured times, how it ended."""

from __future__ import annotations

import time

import grpc
from tritonclient.grpc import service_pb2

from vita_audio.contract.messages import Status
from vita_client.errors import (
    ClientError,
    GenerationFailed,
    StreamBroken,
    StreamCancelled,
    from_message,
    from_rpc,
    one_line,
)
from vita_client.events import Event, Metrics, Pcm, StatusUpdate, TextDelta, TokensDelta
from vita_client.wire import read_response


class Progress:
    """Reads responses into events, keeps the numbers, and turns every way a stream can end into one error or none.

    Made at the moment the request is sent: all times count from there. Not thread safe; one reader feeds it.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._start_s = time.perf_counter()
        self._end_s: float | None = None
        self._first_response_s: float | None = None
        self._first_text_s: float | None = None
        self._first_audio_s: float | None = None
        self._last_audio_s: float | None = None
        self._responses = self._tokens = 0
        self._audio_s = 0.0
        self.status: Status | None = None
        self.failure: ClientError | None = None
        self.refused = False

    def read(self, message: service_pb2.ModelStreamInferResponse) -> tuple[Event, ...]:
        """Events of one message; `failure` is set when the stream is over because of it (raise it after the events).

        `refused` says that the failure is an error message. The call must then be read to its end, which follows at
        once: tritonserver 2.51 never frees a request whose call is cancelled after such a message.
        """
        now_s = time.perf_counter()
        response = read_response(message)
        if response.error:
            self.failure, self.refused = from_message(response.error, self._url), True
            return ()
        if not response.events:
            return ()
        self._responses += 1
        self._first_response_s = self._first_response_s or now_s
        for event in response.events:
            self._note(event, now_s)
        return response.events

    def _note(self, event: Event, now_s: float) -> None:
        if isinstance(event, TextDelta):
            self._first_text_s = self._first_text_s or now_s
        elif isinstance(event, TokensDelta):
            self._tokens += len(event.ids)
        elif isinstance(event, Pcm):
            self._first_audio_s = self._first_audio_s or now_s
            self._last_audio_s = now_s
            self._audio_s += event.seconds
        elif isinstance(event, StatusUpdate):
            self.status = event.status
            reason = one_line(event.status.reason) or "no reason given"
            if event.status.state == "failed":
                self.failure = GenerationFailed(f"the server failed: {reason}")
            elif event.status.state == "cancelled":
                self.failure = StreamCancelled(f"the server cancelled the stream: {reason}")

    @property
    def complete(self) -> bool:
        """True once the server has said that the stream is over."""
        return self.status is not None and self.status.final

    def at_end(self) -> ClientError | None:
        """The error, if any, of a stream whose call ended with OK."""
        self.stop_clock()
        if self.refused or self.complete:
            return self.failure
        return StreamBroken(
            f"the stream from {self._url} ended without a final status after {self._responses} responses"
        )

    def at_error(self, error: grpc.RpcError) -> ClientError | None:
        """The error of a stream whose call ended with another gRPC status; None when all had been received before."""
        self.stop_clock()
        if self.refused or self.complete:
            return self.failure
        return from_rpc(
            error.code(), error.details(), url=self._url, timeout_s=self._timeout_s, responses=self._responses
        )

    def stop_clock(self) -> None:
        self._end_s = self._end_s or time.perf_counter()

    def metrics(self) -> Metrics:
        """The numbers so far."""

        def since_start_ms(moment_s: float | None) -> float | None:
            return None if moment_s is None else (moment_s - self._start_s) * 1e3

        return Metrics(
            elapsed_ms=((self._end_s or time.perf_counter()) - self._start_s) * 1e3,
            first_response_ms=since_start_ms(self._first_response_s),
            first_text_ms=since_start_ms(self._first_text_s),
            first_audio_ms=since_start_ms(self._first_audio_s),
            last_audio_ms=since_start_ms(self._last_audio_s),
            responses=self._responses,
            tokens=self._tokens,
            audio_s=self._audio_s,
        )
