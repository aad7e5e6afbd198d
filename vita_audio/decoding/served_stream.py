"""One stream inside the decoding service: its requests in order, its text and its audio so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import BadMessage, error_code, in_one_line
from vita_audio.contract.messages import MAX_REASON, State, Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_audio.decoding.decoder import Pcm, StreamingDecoder, StreamState

#: How long a stream not heard yet may wait for its first sound when another's listener is about to run out of audio.
#: 0 would let every newcomer overtake a listener with little left; the more, the longer a first sound may wait.
FIRST_SOUND_S = 0.3


class TokenClassifier(Protocol):
    """What the decoder asks of a vocabulary (`vocabulary.Vocabulary` is one)."""

    def is_text(self, token: int) -> bool: ...

    def audio_code(self, token: int) -> int | None: ...


class Detokenizer(Protocol):
    """Text of one stream as it comes (`text.IncrementalDetokenizer` is one)."""

    def push(self, ids: Iterable[int]) -> str: ...

    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class DecodedChunk:
    """The answer to one message of the language model, or a part of it: the outputs of the ensemble.

    A message that makes several decodes due is answered decode by decode, so that the first does not wait for the last.
    `complete` is true in the last part.
    """

    text: str
    tokens: NDArray[np.int32]
    pcm: Pcm  # 22 050 Hz
    status: Status
    complete: bool = True
    prompt: Sequence[int] = ()  # in a stream's first answer

    @classmethod
    def empty(cls, status: Status) -> DecodedChunk:
        """A complete answer that has nothing but a status."""
        return cls("", np.zeros(0, np.int32), np.zeros(0, np.int16), status)


class Ending(NamedTuple):
    """How a stream ended; the fields are those of `Status`."""

    state: State
    reason: str = ""
    code: str = ""

    @classmethod
    def of(cls, error: Exception) -> Ending:
        """Decoding failed with `error`: one line for the client."""
        return cls("failed", f"audio decoding failed: {in_one_line(error)}"[:MAX_REASON], error_code(error))


CANCELLED = Ending("cancelled", "cancelled", "cancelled")


@dataclass(frozen=True, slots=True)
class Request:
    """One message of the language model, and whom to answer. `submitted` is in seconds of `time.perf_counter`."""

    status: Status
    tokens: Sequence[int]
    reply: Callable[[DecodedChunk], None]
    cancelled: Callable[[], bool]
    submitted: float
    prompt: Sequence[int] = ()

    def empty(self, ending: Ending, index: int | None = None) -> DecodedChunk:
        """An answer without content that says how the stream ended. `index`: of the response, if not the message's."""
        index = self.status.index if index is None else index
        return DecodedChunk.empty(replace(self.status, **ending._asdict(), index=index))


@dataclass(slots=True)
class ServedStream:
    """State of one live stream; touched by the decoding thread alone. Times in seconds of `time.perf_counter`."""

    id: str
    audio: StreamState
    detokenizer: Detokenizer
    last_seen: float
    requests: deque[Request] = field(default_factory=deque)  # the first one is being decoded once `begun`
    begun: bool = False
    decoding: bool = False  # a decode of it is under way
    next_index: int = 0  # of the next message
    responses: int = 0  # sent so far
    text: str = ""  # of the request being decoded and not sent yet, as the two below
    tokens: Sequence[int] = ()
    pcm: list[Pcm] = field(default_factory=list)
    request_decode_ms: float = 0.0
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    samples: int = 0  # handed out
    clock: float | None = None  # when its first audio token came, then when its first sample left

    def begin(self, decoder: StreamingDecoder, vocabulary: TokenClassifier) -> None:
        """Take in the tokens of the first request: text to the detokeniser, codes to the decoder, tags to neither."""
        request = self.requests[0]
        status = request.status
        if status.index != self.next_index:
            raise BadMessage(f"message {status.index} came when {self.next_index} was due")
        self.next_index += 1
        self.begun, self.tokens, self.pcm, self.request_decode_ms = True, request.tokens, [], 0.0
        self.text = self.detokenizer.push([token for token in request.tokens if vocabulary.is_text(token)])
        if status.final:
            self.text += self.detokenizer.flush()
        codes = [code for token in request.tokens if (code := vocabulary.audio_code(token)) is not None]
        if codes and self.clock is None:
            self.clock = request.submitted
        # A stream that the language model broke off is not spoken to its end.
        if status.state in ("running", "done"):
            decoder.feed(self.audio, codes, end=status.state == "done")

    def add(self, pcm: Pcm, decode_ms: float) -> None:
        """A decode for the request being decoded has run."""
        self.pcm.append(pcm)
        self.request_decode_ms += decode_ms
        self.decode_ms += decode_ms

    @property
    def has_sound(self) -> bool:
        """Whether the request being decoded has samples that were not sent."""
        return any(len(part) for part in self.pcm)

    def answer(self, now: float, complete: bool) -> DecodedChunk:
        """What the first request has to be answered with by now; `complete` when all its decodes have run."""
        request = self.requests[0]
        pcm = np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.int16)
        if len(pcm) and not self.samples:
            self.clock = now
        self.samples += len(pcm)
        queue_ms = self.queue_ms + (now - request.submitted) * 1e3 - self.request_decode_ms
        timings = {**request.status.timings_ms, "decode_queue": queue_ms, "decode": self.decode_ms}
        status = replace(request.status, timings_ms=timings, index=self.responses)
        if complete:
            self.begun, self.queue_ms = False, queue_ms
        else:
            status = replace(status, state="running", reason="")
        prompt = () if self.responses else request.prompt
        chunk = DecodedChunk(self.text, np.asarray(self.tokens, np.int32), pcm, status, complete, prompt)
        self.text, self.tokens, self.pcm = "", (), []
        self.responses, self.last_seen = self.responses + 1, now
        return chunk

    def time_left_s(self, now: float) -> float:
        """Seconds until the listener runs out of audio; of a stream not heard yet, of its `FIRST_SOUND_S`."""
        in_hand = self.samples / OUTPUT_SAMPLE_RATE_HZ if self.samples else FIRST_SOUND_S
        return in_hand - (now - (self.clock or now))
