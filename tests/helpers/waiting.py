"""Waits for what a thread or a process does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 10) -> float:
    """Seconds that it took; a failure when it takes too many."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "timed out"
        time.sleep(0.001)
    return time.monotonic() - begin
