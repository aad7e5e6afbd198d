"""What a stream yields: one small type per kind of event, and the numbers measured while it ran.

One response of the server becomes up to four events, always in this order: text, tokens, sound, status; before those of
the first one come the ids of its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.messages import Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of text (never empty, always whole characters)."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptIds:
    """The ids of all turns and of this request's, up to its answer: with the answer's they are the next HISTORY."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokensDelta:
    """The ids of the next tokens, text and audio, as the language model wrote them (never empty)."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Pcm:
    """The next piece of sound: `samples` int16 [samples], mono, to be played right after the piece before it."""

    samples: NDArray[np.int16]
    sample_rate_hz: int = OUTPUT_SAMPLE_RATE_HZ

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate_hz


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """The server's word on the stream; the last one has a state other than "running"."""

    status: Status


Event = PromptIds | TextDelta | TokensDelta | Pcm | StatusUpdate


@dataclass(slots=True)
class Metrics:
    """Times measured at the client, in milliseconds since the request was sent; None where nothing came.

    `ttfa_ms` is the time to first audio: until the first samples are here.
    """

    elapsed_ms: float = 0.0
    first_text_ms: float | None = None
    ttfa_ms: float | None = None
    last_audio_ms: float | None = None
    responses: int = 0
    tokens: int = 0
    audio_s: float = 0.0

    def add(self, event: Event, at_ms: float) -> None:
        """Count an event that came at `at_ms`."""
        if isinstance(event, TextDelta):
            self.first_text_ms = self.first_text_ms or at_ms
        elif isinstance(event, TokensDelta):
            self.tokens += len(event.ids)
        elif isinstance(event, Pcm):
            self.ttfa_ms, self.last_audio_ms = self.ttfa_ms or at_ms, at_ms
            self.audio_s += event.seconds

    @property
    def real_time_factor(self) -> float | None:
        """Seconds spent for each second of sound, up to the last sound: below 1 is faster than real time."""
        if self.last_audio_ms is None or not self.audio_s:
            return None
        return self.last_audio_ms / 1e3 / self.audio_s

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens over the whole time since the request was sent, waiting included."""
        return self.tokens / (self.elapsed_ms / 1e3) if self.tokens and self.elapsed_ms else None


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """A whole stream, collected: what `collect()` returns. `pcm` is int16 [samples], possibly empty."""

    text: str
    tokens: tuple[int, ...]
    pcm: NDArray[np.int16]
    sample_rate_hz: int
    status: Status | None
    metrics: Metrics
    prompt: tuple[int, ...] = ()

    @property
    def history(self) -> tuple[int, ...]:
        """The conversation up to here, for the next request."""
        return self.prompt + self.tokens


class Collector:
    """Joins the events of a stream into one `Reply`: add them in order, then ask for it."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._prompt: tuple[int, ...] = ()
        self._tokens: list[int] = []
        self._pcm: list[NDArray[np.int16]] = []

    def add(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._text.append(event.text)
        elif isinstance(event, TokensDelta):
            self._tokens.extend(event.ids)
        elif isinstance(event, PromptIds):
            self._prompt = event.ids
        elif isinstance(event, Pcm):
            self._pcm.append(event.samples)

    def reply(self, status: Status | None, metrics: Metrics) -> Reply:
        pcm = np.concatenate(self._pcm) if self._pcm else np.zeros(0, np.int16)
        text, tokens = "".join(self._text), tuple(self._tokens)
        return Reply(text, tokens, pcm, OUTPUT_SAMPLE_RATE_HZ, status, metrics, self._prompt)
