"""Ctrl-C while a stream runs on the command line: the stream is cancelled from a thread.

A KeyboardInterrupt that is raised inside of gRPC's Python code may leave a lock of the channel held for ever, and what
waits for it then never ends.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from vita_client.client import Stream
from vita_client.reading import Reading

StreamT = TypeVar("StreamT", bound="Stream | Reading")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: What does not end by a cancel, such as writing to a pipe that is not read, is interrupted after so long.
_PATIENCE_S = 1.0


@contextmanager
def interruptible(send: Callable[[], StreamT]) -> Iterator[StreamT]:
    """The stream that `send` starts, for the block; in the main thread only.

    SIGINT and SIGTERM cancel it: its iteration ends, and the block with it. A signal that is ignored (nohup) stays so.

    Raises:
        KeyboardInterrupt: at the end of the block, after a signal; inside of it after another one, or after a second.
    """
    # Of all queues this one alone may be used in a signal handler.
    started: queue.SimpleQueue[StreamT | None] = queue.SimpleQueue()
    over: queue.SimpleQueue[bool] = queue.SimpleQueue()
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        over.put(False)

    def watch() -> None:
        if (stream := started.get()) is None or over.get():
            return
        stream.cancel()
        try:
            over.get(timeout=_PATIENCE_S)
        except queue.Empty:
            _interrupt_main_thread()

    heeded = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    threading.Thread(target=watch, name="interrupts", daemon=True).start()
    try:
        stream = send()
        with stream:
            started.put(stream)
            yield stream
    finally:
        started.put(None)
        over.put(True)
        for number, handler in before.items():
            signal.signal(number, handler)
        if interrupted:
            raise KeyboardInterrupt


def _interrupt_main_thread() -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows has no signal for a thread
        signal.raise_signal(signal.SIGINT)
