"""What a Wyoming client sends, checked and bounded: events of a limited size, the speech of a turn, text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray
from wyoming.audio import AudioChunk, AudioFormat
from wyoming.event import Event, Eventable, async_read_event

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.limits import MAX_AUDIO_SECONDS, MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ
from vita_client.sentences import has_words

EventableT = TypeVar("EventableT", bound=Eventable)
_SAMPLE_TYPES = {2: "<i2", 4: "<i4"}
#: What the package raises for events that have not the form it expects.
_MALFORMED = (TypeError, KeyError, AttributeError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one Wyoming server.

    Args:
        connections: open at the same time.
        event_bytes: of an event's data, and of its payload.
        audio_bytes: of the speech of one turn, which has at most 120 s besides.
        text_chars: of one text to be spoken.
        idle_s: a client may be silent.
        send_s: a client may leave what it is sent unread.
    """

    connections: int = 64
    event_bytes: int = 1 << 20
    audio_bytes: int = 32 << 20
    text_chars: int = 16_384
    idle_s: float = 120.0
    send_s: float = 20.0


class BoundedReader:
    """Reads events. The package's own reading takes any length that an event states."""

    def __init__(self, reader: asyncio.StreamReader, bounds: Bounds) -> None:
        self._reader, self._bounds = reader, bounds

    async def event(self) -> Event | None:
        """The next event; None when the client has sent its last one.

        Raises:
            InvalidRequest: it is no event, or too large.
            TimeoutError: nothing came for `idle_s`.
        """
        try:
            with anyio.fail_after(self._bounds.idle_s):
                event = await async_read_event(self)  # type: ignore[arg-type]  # it uses the two methods below
        except asyncio.IncompleteReadError:
            return None
        except _MALFORMED:
            event = None
        else:
            if event is None and self._reader.at_eof():
                return None
        if event is None or not isinstance(event.type, str) or not isinstance(event.data, dict):
            raise InvalidRequest("event", "a line", "it is a JSON object with a type, of at most 64 KiB")
        return event

    async def readline(self) -> bytes:
        return await self._reader.readline()

    async def readexactly(self, size: int) -> bytes:
        if size > self._bounds.event_bytes:
            raise InvalidRequest("event", f"{size} bytes", f"an event has at most {self._bounds.event_bytes} bytes")
        return await self._reader.readexactly(size)


def parsed(kind: type[EventableT], event: Event) -> EventableT:
    """An event as its type.

    Raises:
        InvalidRequest: a field is missing.
    """
    try:
        return kind.from_event(event)  # type: ignore[return-value]
    except _MALFORMED:
        raise InvalidRequest(event.type, event.data, "a field is missing, or of a wrong type") from None


class Speech:
    """The speech of one turn, from audio-start to audio-stop: its format, and its samples so far."""

    def __init__(self, stated: AudioFormat, bounds: Bounds) -> None:
        """Raises: InvalidRequest: field rate, width or channels."""
        self._rate_hz = _whole("rate", stated.rate, MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ)
        self._width = _whole("width", stated.width, min(_SAMPLE_TYPES), max(_SAMPLE_TYPES))
        self._channels = _whole("channels", stated.channels, 1, 2)
        if self._width not in _SAMPLE_TYPES:
            raise InvalidRequest("width", self._width, "a sample has 2 or 4 bytes")
        self._bounds, self._pcm = bounds, bytearray()

    def add(self, chunk: AudioChunk) -> None:
        """Raises: InvalidRequest: another format than the start's, or too much."""
        for name, stated in (("rate", self._rate_hz), ("width", self._width), ("channels", self._channels)):
            if getattr(chunk, name) != stated:
                limit = f"audio-start said {stated}"
                raise InvalidRequest(name, getattr(chunk, name), limit, "begin again with audio-start")
        size = len(self._pcm) + len(chunk.audio)
        seconds = size / (self._rate_hz * self._width * self._channels)
        if size > self._bounds.audio_bytes or seconds > MAX_AUDIO_SECONDS:
            limit = f"at most {MAX_AUDIO_SECONDS:g} s and {self._bounds.audio_bytes} bytes are taken"
            raise InvalidRequest("audio", f"{seconds:.1f} s, {size} bytes", limit, "send audio-stop sooner")
        self._pcm += chunk.audio

    def samples(self) -> tuple[NDArray[np.generic], int]:
        """int16 or int32 [samples, channels], and their rate in Hz.

        Raises:
            InvalidRequest: the last sample is not whole.
        """
        if len(self._pcm) % (self._width * self._channels):
            limit = f"a sample has {self._width * self._channels} bytes"
            raise InvalidRequest("audio", f"{len(self._pcm)} bytes", limit, "send whole samples")
        samples = np.frombuffer(bytes(self._pcm), _SAMPLE_TYPES[self._width])
        return samples.reshape(-1, self._channels), self._rate_hz


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(name, value, f"it is a whole number from {low} to {high}")
    return value


class Text:
    """Text to be spoken, which comes in pieces: an async iterator of them, for one reader."""

    def __init__(self, bounds: Bounds) -> None:
        self._longest_chars, self._chars, self._has_words = bounds.text_chars, 0, False
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def add(self, piece: Any) -> None:
        """Raises: InvalidRequest: it is no text, or all of it together is too long."""
        if not isinstance(piece, str):
            raise InvalidRequest("text", piece, "it is a string")
        self._chars += len(piece)
        if self._chars > self._longest_chars:
            limit = f"at most {self._longest_chars} characters are spoken"
            raise InvalidRequest("text", f"{self._chars} characters", limit, "send it in parts")
        self._has_words = self._has_words or has_words(piece)
        self._pieces.put_nowait(piece)

    def finish(self) -> None:
        """That was all of it. Raises: InvalidRequest: nothing of it can be spoken."""
        if not self._has_words:
            raise InvalidRequest("text", f"{self._chars} characters", "it has no letter and no digit", "send words")
        self._pieces.put_nowait(None)

    def __aiter__(self) -> Text:
        return self

    async def __anext__(self) -> str:
        piece = await self._pieces.get()
        if piece is None:
            raise StopAsyncIteration
        return piece
