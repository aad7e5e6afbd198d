"""A decoding service on stand-in engines whose decodes a test can hold back, with a record of all it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from decoding_doubles import EVERY_20, FlowDouble, VocoderDouble
from vita_audio.contract.messages import Cancel, Delta, Released, State, Status
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.served_stream import DecodedChunk
from vita_audio.decoding.service import DecodingService
from vita_audio.pulse import Pulse
from waiting import until

AUDIO = 1000  # id of audio code 0; ids below 256 are bytes of text, 300 and 301 the audio tags


class VocabularyDouble:
    def is_text(self, token: int) -> bool:
        return token < 256

    def audio_code(self, token: int) -> int | None:
        return token - AUDIO if token >= AUDIO else None


class DetokenizerDouble:
    """One byte a token; the last one waits for the next, to see that the end is flushed."""

    def __init__(self) -> None:
        self._kept = ""

    def push(self, ids: Iterable[int]) -> str:
        text = self._kept + "".join(map(chr, ids))
        self._kept = text[-1:]
        return text[:-1]

    def flush(self) -> str:
        return self._kept


class GatedFlow(FlowDouble):
    """Waits before every decode until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.one_at_a_time = threading.Event()  # the gate shuts after every decode it lets through

    def condition(self, tokens: np.ndarray, frame_token: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.open.wait(10)
        if self.one_at_a_time.is_set():
            self.open.clear()
        return super().condition(tokens, frame_token)


@dataclass
class Bench:
    """A service, the messages sent to it and everything it answered."""

    flow: GatedFlow
    vocoder: VocoderDouble
    service: DecodingService
    answers: list[DecodedChunk] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    stopped: list[str] = field(default_factory=list)
    released: list[tuple[str, int]] = field(default_factory=list)  # and how many answers had been sent by then
    notify_threads: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=dict)

    def send(
        self,
        stream: str,
        tokens: list[int],
        state: State = "running",
        cancelled: Callable[[], bool] = lambda: False,
        index: int | None = None,
        seed: int = 7,
    ) -> None:
        index = self.sent.get(stream, 0) if index is None else index
        self.sent[stream] = index + 1
        status = Status(stream, index, state, seed=seed, timings_ms={"lm": 1.5})
        self.service.submit(Delta(status, tokens), self._take, cancelled)

    def _take(self, chunk: DecodedChunk) -> None:
        self.threads.add(threading.current_thread().name)
        self.answers.append(chunk)

    def of(self, stream: str) -> list[DecodedChunk]:
        return [chunk for chunk in self.answers if chunk.status.stream == stream]

    def order(self) -> list[str]:
        """Streams of the messages, as they were answered to the end."""
        return [chunk.status.stream for chunk in self.answers if chunk.complete]

    def pcm(self, stream: str) -> np.ndarray:
        return np.concatenate([chunk.pcm for chunk in self.of(stream)])

    def wait(self, count: int) -> None:
        """For this many messages to be answered to the end."""
        until(lambda: self.complete >= count)
        assert self.complete == count

    @property
    def complete(self) -> int:
        return sum(chunk.complete for chunk in self.answers)


def make(
    idle_timeout_s: float = 60.0,
    max_batch: int = 8,
    stop: Callable[[str], None] | None = None,
    max_streams: int = 1024,
    pulse: Pulse | None = None,
) -> Bench:
    flow, vocoder = GatedFlow(), VocoderDouble()
    made: Bench

    def notify(message: Cancel | Released) -> None:
        made.notify_threads.add(threading.current_thread().name)
        if isinstance(message, Released):
            made.released.append((message.stream, len(made.of(message.stream))))
            return
        made.stopped.append(message.stream)
        if stop is not None:
            stop(message.stream)

    service = DecodingService(
        StreamingDecoder(flow, vocoder, EVERY_20, streams=128),
        VocabularyDouble(),
        DetokenizerDouble,
        notify,
        max_batch=max_batch,
        idle_timeout_s=idle_timeout_s,
        max_streams=max_streams,
        pulse=pulse,
    )
    made = Bench(flow, vocoder, service)
    return made


def audio(count: int, start: int = 0) -> list[int]:
    return [AUDIO + (start + i) % 64 for i in range(count)]
