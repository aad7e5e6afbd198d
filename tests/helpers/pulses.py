"""A pulse that counts its beats and calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vita_audio.pulse import Pulse


class RecordedPulse(Pulse):
    """Counts; `inside` is set while a call lasts, `ended` once the loop is broken."""

    def __init__(self) -> None:
        self.beats = self.calls = 0
        self.inside, self.ended = threading.Event(), threading.Event()

    def beat(self) -> None:
        self.beats += 1

    @contextmanager
    def call(self) -> Iterator[None]:
        self.calls += 1
        self.inside.set()
        yield
        self.inside.clear()

    def broken(self) -> None:
        self.ended.set()
