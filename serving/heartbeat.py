"""Heartbeats: whether the worker threads of each model process turn, as words in memory-mapped files.

Each model process writes one file into a folder of its server, named after the model instance; the launcher reads them
(`server/stalls.py`). A thread that hangs cannot say so, and its process would stay alive and look healthy. Every row
has one writer, so no lock crosses a process.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.metrics.recorder import Recorder
from serving.settings import ServingSettings
from vita_audio.pulse import Pulse

#: The threads there may be in a model process, in the order of their rows. `execute` is Triton's own.
THREADS = ("generation", "prober", "decoding", "notifier", "metrics", "execute")
#: State of a row: nothing is expected of it, its loop turns, it is in a call that may take long.
RESTING, TURNING, CALLING = range(3)
_BYTES = 16 * len(THREADS)  # a row is two 64-bit words: time of the last beat in ms, state

#: Between the end of a loop and that of its process: the last answers are on their way to the callers.
FAREWELL_S = 0.5
EXIT_BROKEN = 70

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Beat:
    """The last of a thread; `at_ms` of time.monotonic, one clock for all processes of a machine."""

    at_ms: int
    calling: bool


def end_process() -> None:
    """End this model process after FAREWELL_S; Triton's own way out would wait for the thread that is broken."""
    time.sleep(FAREWELL_S)
    os._exit(EXIT_BROKEN)


class Heartbeats:
    """The threads of this model process.

    Args:
        path: the file, made here; None keeps the beats to this process.
        stage, worker: this model and its instance, for metrics.
        end: called when one of the threads has ended by a fault; ends the process, so that the server is replaced.
    """

    def __init__(
        self, path: Path | None = None, stage: str = "", worker: str = "", end: Callable[[], None] = end_process
    ) -> None:
        self._words, self._stage, self._worker, self._end = _open(path), stage, worker, end
        self._seen: set[str] = set()

    @classmethod
    def serve(cls, stage: str, worker: str) -> Heartbeats:
        """Those of the model instance `worker` of this server."""
        folder = ServingSettings.from_environment().heartbeats
        return cls(None if folder is None else folder / worker, stage, worker)

    def pulse(self, thread: str) -> Pulse:
        """What `thread`, one of THREADS, is to use. Nothing is expected of it before its first beat or call."""
        return _Watched(self._words, thread, self._end)

    def measure(self, recorder: Recorder) -> None:
        """Record how old the last beat of each thread is; 0 for one of which nothing is expected."""
        beats = _beats(self._words)
        for thread in THREADS:
            if thread in beats or thread in self._seen:
                self._seen.add(thread)
                age_ms = _now_ms() - beats[thread].at_ms if thread in beats else 0
                labels = {"stage": self._stage, "thread": thread, "worker": self._worker}
                recorder.set("vita_heartbeat_age_ms", age_ms, **labels)


class HeartbeatReader:
    """The beats of all model processes of a server that is ready: each has made its file.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._words = {path.name: _open(path) for path in folder.iterdir()}

    def read(self) -> dict[str, dict[str, Beat]]:
        """Model instance -> thread -> its last beat, of the threads of which something is expected."""
        return {worker: _beats(words) for worker, words in self._words.items()}


class _Watched(Pulse):
    def __init__(self, words: memoryview, thread: str, end: Callable[[], None]) -> None:
        self._words, self._thread, self._end = words, thread, end
        self._row = 2 * THREADS.index(thread)

    def beat(self) -> None:
        self._write(TURNING)

    @contextmanager
    def call(self) -> Iterator[None]:
        before = self._words[self._row + 1]
        self._write(CALLING)
        try:
            yield
        finally:
            self._write(before)

    def broken(self) -> None:
        log.critical("thread %s has ended: this process ends, so that the server is started again", self._thread)
        self._end()

    def _write(self, state: int) -> None:
        self._words[self._row], self._words[self._row + 1] = _now_ms(), state


def _open(path: Path | None) -> memoryview:
    if path is None:
        return memoryview(mmap.mmap(-1, _BYTES)).cast("q")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(file, _BYTES)
        return memoryview(mmap.mmap(file, _BYTES)).cast("q")
    finally:
        os.close(file)


def _beats(words: memoryview) -> dict[str, Beat]:
    rows = ((thread, words[2 * row], words[2 * row + 1]) for row, thread in enumerate(THREADS))
    return {thread: Beat(at_ms, state == CALLING) for thread, at_ms, state in rows if state != RESTING}


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
