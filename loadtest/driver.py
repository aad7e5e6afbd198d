"""Sends one request and records what came back when: how load test, benchmarks and evaluation all measure.

TTFA (time to first audio): from the moment the request is sent to the arrival of the first response that holds audible
sound, which is at least one sample above -60 dB of full scale (`is_audible`). The network and the server's queue are in
it, a player's buffer is not. A turn that was sent while it was spoken counts from the end of speaking. Needs the base
install only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from loadtest.clock import now_s
from loadtest.playout import Chunk, Playout, play
from vita_audio.contract.errors import VitaError
from vita_audio.contract.messages import Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_client import AsyncClient, AsyncStream, Pcm, StatusUpdate, Stream, TextDelta, TokensDelta
from vita_client.events import Event
from vita_client.request import Request

#: -60 dB of full scale; samples up to it are silence.
AUDIBLE_AMPLITUDE = 33
#: How a stream ended when no error ended it.
DONE, CANCELLED = "done", "cancelled"


def is_audible(samples: NDArray[np.int16]) -> bool:
    """Whether at least one sample is above -60 dB of full scale. Samples: int16 [samples]."""
    return bool((np.abs(samples.astype(np.int32)) > AUDIBLE_AMPLITUDE).any())


@dataclass(slots=True)
class Response:
    """One response. `stages_ms`: the server's own time per stage since the request began, up to here."""

    at_s: float
    samples: int = 0
    audible: bool = False
    tokens: int = 0
    text: bool = False
    stages_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One request as its caller saw it. Moments are on `loadtest.clock`; spans in ms count from sending.

    Args:
        code: "done", "cancelled" by the caller, or the code of the error that ended the stream.
        error: its text, empty where there was none.
        reason: why generation ended, by the server's last status.
        prompt_tokens: of the prompt, of which a slot still held the first `cached_tokens`.
    """

    sent_s: float
    end_s: float
    responses: tuple[Response, ...] = ()
    code: str = DONE
    error: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def ttfa_ms(self) -> float | None:
        """Time to first audio as defined above; None where no audible sound came."""
        return self._first_ms(lambda response: response.audible)

    @property
    def first_sample_ms(self) -> float | None:
        """Arrival of the first samples, silent or not."""
        return self._first_ms(lambda response: response.samples > 0)

    @property
    def first_text_ms(self) -> float | None:
        return self._first_ms(lambda response: response.text)

    @property
    def total_ms(self) -> float:
        return (self.end_s - self.sent_s) * 1e3

    @property
    def chunks(self) -> list[Chunk]:
        """Responses with sound, as the playout model takes them."""
        return [Chunk(response.at_s, response.samples) for response in self.responses if response.samples]

    @property
    def gaps_ms(self) -> tuple[float, ...]:
        """Between arrivals of sound."""
        return tuple((later.arrived_s - earlier.arrived_s) * 1e3 for earlier, later in pairwise(self.chunks))

    @cached_property
    def samples(self) -> int:
        return sum(response.samples for response in self.responses)

    @property
    def audio_s(self) -> float:
        return self.samples / OUTPUT_SAMPLE_RATE_HZ

    @property
    def tokens(self) -> int:
        return sum(response.tokens for response in self.responses)

    @property
    def real_time_factor(self) -> float | None:
        """Seconds from sending to the last sound, for each second of sound: below 1 is faster than real time."""
        chunks = self.chunks
        return (chunks[-1].arrived_s - self.sent_s) / self.audio_s if chunks else None

    @property
    def first_stages_ms(self) -> Mapping[str, float]:
        """The server's times up to the first audible sound: with the hops between, they make up the TTFA."""
        return next((response.stages_ms for response in self.responses if response.audible), {})

    @property
    def stages_ms(self) -> Mapping[str, float]:
        """The server's times up to the last response."""
        return next((response.stages_ms for response in reversed(self.responses) if response.stages_ms), {})

    def playout(self, prebuffer_s: float = 0.0) -> Playout:
        """What a player makes of it that begins `prebuffer_s` after the first samples: underruns, sound in hand."""
        return play(self.chunks, OUTPUT_SAMPLE_RATE_HZ, prebuffer_s)

    def _first_ms(self, wanted: Callable[[Response], bool]) -> float | None:
        return next(((each.at_s - self.sent_s) * 1e3 for each in self.responses if wanted(each)), None)


class Sender(Protocol):
    """What sends a request: a `Client`, or a conversation for its next turn."""

    def send(self, request: Request, *, timeout_s: float) -> Stream: ...


class Drive:
    """One request on its way. `cancel()` may be called at any time and from any thread (asyncio: from its loop).

    Args:
        timeout_s: deadline of the whole stream.
        on_event: called with each event as it comes; time spent in it delays the next one.

    Attributes:
        responses: those that have come so far.
        failure: the error that ended the stream.
    """

    def __init__(
        self, request: Request, timeout_s: float, on_event: Callable[[Event], None] = lambda event: None
    ) -> None:
        self._request, self._timeout_s, self._on_event = request, timeout_s, on_event
        self._stream: Stream | AsyncStream | None = None
        self._cancelled = self._open = False
        self._status: Status | None = None
        self.responses: list[Response] = []
        self.failure: VitaError | None = None

    def cancel(self) -> None:
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def run(self, client: Sender, sent_s: float | None = None) -> Record:
        """Send and follow to the end. A stream that fails is a record too, never an exception.

        Args:
            sent_s: the moment that times count from, where it is not now.
        """
        sent_s = now_s() if sent_s is None else sent_s
        try:
            with client.send(self._request, timeout_s=self._timeout_s) as stream:
                self._begin(stream)
                for event in stream:
                    self._take(event)
        except VitaError as error:
            self.failure = error
        return self._record(sent_s)

    async def run_async(self, client: AsyncClient) -> Record:
        """The same for asyncio."""
        sent_s = now_s()
        try:
            async with client.send(self._request, timeout_s=self._timeout_s) as stream:
                self._begin(stream)
                async for event in stream:
                    self._take(event)
        except VitaError as error:
            self.failure = error
        return self._record(sent_s)

    def _begin(self, stream: Stream | AsyncStream) -> None:
        self._stream = stream
        if self._cancelled:
            stream.cancel()

    def _take(self, event: Event) -> None:
        """A response comes as up to four events, the status last."""
        if not self._open:
            self.responses.append(Response(now_s()))
        response = self.responses[-1]
        self._open = not isinstance(event, StatusUpdate)
        if isinstance(event, StatusUpdate):
            response.stages_ms, self._status = dict(event.status.timings_ms), event.status
        elif isinstance(event, Pcm):
            response.samples, response.audible = len(event.samples), is_audible(event.samples)
        elif isinstance(event, TokensDelta):
            response.tokens = len(event.ids)
        elif isinstance(event, TextDelta):
            response.text = True
        self._on_event(event)

    def _record(self, sent_s: float) -> Record:
        error = self.failure
        code = error.code if error is not None else CANCELLED if self._cancelled else DONE
        text = "" if error is None else f"{code}: {error}"
        record = Record(sent_s, now_s(), tuple(self.responses), code, text)
        if (last := self._status) is None:
            return record
        return replace(record, reason=last.reason, prompt_tokens=last.prompt_tokens, cached_tokens=last.cached_tokens)
