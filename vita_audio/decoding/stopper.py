"""Tells the language model, from a thread of its own, which streams nobody listens to any more."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Stopper:
    """Runs `stop(stream_id)` one call at a time, never on the caller's thread: a stop is a request to another model.

    Args:
        stop: may block and may raise; errors are logged and counted, and the next call goes on.
    """

    def __init__(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        self._ids: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.calls = self.errors = 0
        self._thread = threading.Thread(target=self._run, name="stopper", daemon=True)
        self._thread.start()

    def request(self, stream_id: str) -> None:
        """Ask for the end of a stream; returns at once."""
        self._ids.put(stream_id)

    def close(self, timeout_s: float) -> bool:
        """Run the calls already asked for and end the thread; False if it had not ended within `timeout_s`."""
        self._ids.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (stream_id := self._ids.get()) is not None:
            self.calls += 1
            try:
                self._stop(stream_id)
            except Exception:
                self.errors += 1
                log.exception("stream %s: stopping the language model failed", stream_id)
