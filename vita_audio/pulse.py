"""Signs of life of a worker thread: its loop turns, it is in a long call, it is over for good."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

#: A loop that waits for work turns at least so often, in seconds.
IDLE_TURN_S = 1.0


class Pulse:
    """Of one thread; this one goes nowhere, `serving.heartbeat` has the one that is watched."""

    def beat(self) -> None:
        """The loop turns. Called once a turn and at least every IDLE_TURN_S while there is nothing to do."""

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around what may rightly take long: an engine, a call of another model."""
        yield

    def broken(self) -> None:
        """The loop has ended by a fault of its own, and what depended on it has its answer."""


def answer_ping(answer: Callable[[], None]) -> None:
    """Call `answer` from the loop that was asked whether it turns; that the asker is gone is no fault of the loop."""
    try:
        answer()
    except Exception:
        log.exception("a ping was not answered")
