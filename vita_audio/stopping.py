"""Commands that own processes or temporary folders end on a signal as they do on an exception: cleanly."""

from __future__ import annotations

import signal
import sys
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)


def stop_on_signals() -> None:
    """From now on the first SIGTERM or SIGHUP raises SystemExit(128 + number) in the main thread.

    Later ones are dropped, so that they do not cut short what the first one cleans up. A signal that is ignored (nohup)
    stays so. To be called from the main thread.
    """
    for number in _NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _NUMBERS:
        if signal.getsignal(each) == _stop:
            signal.signal(each, _drop)  # unlike SIG_IGN, not inherited by children
    sys.exit(128 + number)


def _drop(number: int, frame: FrameType | None) -> None:
    pass
