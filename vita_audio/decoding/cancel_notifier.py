"""Calls to the language model, from a thread of their own: Cancel of a stream, Released of one that is over."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable

from vita_audio.contract.messages import Cancel, Released
from vita_audio.pulse import IDLE_TURN_S, Pulse

log = logging.getLogger(__name__)


class CancelNotifier:
    """Runs `notify(message)`, one call at a time and never on the caller's thread: each is a request to another model.

    Args:
        notify: may block and may raise; errors are logged and counted, and the next call goes on.
        pulse: of the thread.

    `cancels` counts the streams cancelled, `errors` the calls that failed.
    """

    def __init__(self, notify: Callable[[Cancel | Released], None], pulse: Pulse | None = None) -> None:
        self._notify, self._pulse = notify, pulse or Pulse()
        self._calls: queue.SimpleQueue[tuple[Cancel | Released, Callable[[], object]] | None] = queue.SimpleQueue()
        self.cancels = self.errors = 0
        self._thread = threading.Thread(target=self._run, name="cancel-notifier", daemon=True)
        self._thread.start()

    def cancel(self, stream_id: str) -> None:
        """The rest of a stream is not wanted; returns at once."""
        self.cancels += 1
        self._calls.put((Cancel(stream_id), lambda: None))

    def release(self, stream_id: str, then: Callable[[], object]) -> None:
        """A stream is over; returns at once. `then` is called after the language model has answered, or failed to."""
        self._calls.put((Released(stream_id), then))

    def close(self, timeout_s: float) -> bool:
        """Make the calls asked for so far and end the thread; False if it had not ended within `timeout_s`."""
        self._calls.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (call := self._next()) is not None:
                message, then = call
                try:
                    with self._pulse.call():
                        self._notify(message)
                except Exception:
                    self.errors += 1
                    log.exception("the language model did not take %s", message)
                then()
        except Exception:  # without this thread no stream would end
            log.exception("cancel notifier failed")
            self._pulse.broken()

    def _next(self) -> tuple[Cancel | Released, Callable[[], object]] | None:
        """The next call, None to end."""
        while True:
            self._pulse.beat()
            with contextlib.suppress(queue.Empty):
                return self._calls.get(timeout=IDLE_TURN_S)
