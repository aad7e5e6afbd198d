"""Who is in the server: at most slots + queue streams, each from its admission until its sound is made.

The language model is seconds ahead of the decoder: if a stream counted only while it generates, a server whose decoder
falls behind would go on taking streams.

`Admission` decides, in the one process of `speech_lm`. The other processes ask its `AdmissionRecord`, a few numbers in
a memory-mapped file: `prompt` before it tokenizes speech, the launcher writes into it that the server drains. Each
number has one writer, so no lock crosses a process; what is read a moment late is refused by `speech_lm` instead.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vita_audio.contract.errors import ServerFull, ServerStopping
from vita_audio.contract.rates import TOKENS_PER_SECOND

#: A record that was not refreshed for so long is that of a process that has died: its fault is not "full".
STALE_S = 2.0
#: A stream whose tokens are complete counts until its sound is made; without a word from the decoder, so long, and as
#: long as a decoder takes that is `SLOWEST` times slower than the sound is played.
LONGEST_DECODING_S, SLOWEST = 60.0, 4.0

_DRAINING, _REFRESHED_MS, _LIMIT, _TAKEN, _WAITING = range(5)  # 64-bit words; the first is the launcher's
_BYTES = 8 * 5


class AdmissionRecord:
    """What every process of one server can read of its admission.

    Args:
        path: the file that they share, made by the first that opens it; None keeps the record to this process.
    """

    def __init__(self, path: Path | None) -> None:
        if path is None:
            self._words = memoryview(mmap.mmap(-1, _BYTES)).cast("q")
            return
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, _BYTES)
            self._words = memoryview(mmap.mmap(file, _BYTES)).cast("q")
        finally:
            os.close(file)

    def drain(self) -> None:
        """Admit no stream from now on; the launcher's."""
        self._words[_DRAINING] = 1

    @property
    def draining(self) -> bool:
        return bool(self._words[_DRAINING])

    def write(self, taken: int, waiting: int, limit: int) -> None:
        """Streams in the server, those of them without a slot, and how many there may be; of `speech_lm`."""
        words = self._words
        words[_LIMIT], words[_WAITING], words[_TAKEN], words[_REFRESHED_MS] = limit, waiting, taken, _now_ms()

    def check(self) -> None:
        """Raises ServerStopping while the server drains, ServerFull while it is full and the record is fresh."""
        if self.draining:
            raise ServerStopping
        limit, taken, waiting, refreshed_ms = (self._words[i] for i in (_LIMIT, _TAKEN, _WAITING, _REFRESHED_MS))
        if taken >= limit > 0 and _now_ms() - refreshed_ms <= STALE_S * 1e3:
            raise ServerFull(taken - waiting, waiting)


@dataclass(frozen=True, slots=True)
class Load:
    """Streams in a slot, without one, and those that need none because only their sound is still being made."""

    running: int
    waiting: int
    decoding: int

    @property
    def taken(self) -> int:
        return self.running + self.waiting + self.decoding


class Admission:
    """Admits streams and follows each to its end; thread safe.

    Args:
        record: where the other processes see it; what an earlier process left there is overwritten.
        slots, queue: streams that generate at the same time, and that are admitted beyond them.
    """

    def __init__(self, record: AdmissionRecord, slots: int, queue: int) -> None:
        self._record, self._slots, self._limit = record, slots, slots + queue
        self._lock = threading.Lock()
        self._admitted = 0
        self._generating: set[str] = set()
        self._decoding: dict[str, float] = {}  # until when at most, by time.monotonic
        self.refresh()

    def admit(self) -> str:
        """Take a stream in; returns its id, which cannot be guessed: with it a stream can be cancelled.

        Raises:
            ServerStopping: the server drains.
            ServerFull: slots + queue streams are in it.
        """
        with self._lock:
            if self._record.draining:
                raise ServerStopping
            load = self._load()
            if load.taken >= self._limit:
                raise ServerFull(load.running + load.decoding, load.waiting)
            self._admitted += 1
            stream = f"s{self._admitted}-{secrets.token_hex(8)}"
            self._generating.add(stream)
            self._publish()
            return stream

    def start_decoding(self, stream: str, tokens: int = 0) -> bool:
        """The `tokens` of a stream are complete: it stays until `release`. False if it was released before."""
        with self._lock:
            if stream not in self._generating:
                return False
            self._generating.remove(stream)
            self._decoding[stream] = time.monotonic() + LONGEST_DECODING_S + SLOWEST * tokens / TOKENS_PER_SECOND
            self._publish()
            return True

    def release(self, stream: str) -> bool:
        """A stream is over. False if it is not in the server."""
        with self._lock:
            known = stream in self._generating or stream in self._decoding
            self._generating.discard(stream)
            self._decoding.pop(stream, None)
            self._publish()
            return known

    def overdue(self) -> list[str]:
        """Streams that have been decoding for longer than any decoder takes that is alive."""
        with self._lock:
            now = time.monotonic()
            return [stream for stream, until in self._decoding.items() if until < now]

    def load(self) -> Load:
        with self._lock:
            return self._load()

    def refresh(self) -> None:
        """Keep the record fresh; to be called more often than every STALE_S."""
        with self._lock:
            self._publish()

    def _load(self) -> Load:
        running = min(len(self._generating), self._slots)
        return Load(running, len(self._generating) - running, len(self._decoding))

    def _publish(self) -> None:
        load = self._load()
        self._record.write(load.taken, load.waiting, self._limit)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000  # one clock for all processes of a machine
