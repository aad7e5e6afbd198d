"""Tells the language model, from a thread of its own, which streams nobody listens to any more, and which are over."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Stopper:
    """Runs `stop(stream_id)` or `release(stream_id)`, one call at a time and never on the caller's thread: both are
    requests to another model.

    Args:
        stop, release: may block and may raise; errors are logged and counted, and the next call goes on.

    `calls` counts stops, `errors` the calls of either kind that failed.
    """

    def __init__(self, stop: Callable[[str], None], release: Callable[[str], None] = lambda _: None) -> None:
        self._stop, self._release = stop, release
        self._calls: queue.SimpleQueue[tuple[Callable[[str], None], str] | None] = queue.SimpleQueue()
        self.calls = self.errors = 0
        self._thread = threading.Thread(target=self._run, name="stopper", daemon=True)
        self._thread.start()

    def request(self, stream_id: str) -> None:
        """Ask for the end of a stream; returns at once."""
        self.calls += 1
        self._calls.put((self._stop, stream_id))

    def release(self, stream_id: str) -> None:
        """Say that a stream is over; returns at once."""
        self._calls.put((self._release, stream_id))

    def close(self, timeout_s: float) -> bool:
        """Run the calls already asked for and end the thread; False if it had not ended within `timeout_s`."""
        self._calls.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            tell, stream_id = call
            try:
                tell(stream_id)
            except Exception:
                self.errors += 1
                log.exception("stream %s: the language model could not be told that it is over", stream_id)
