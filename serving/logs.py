"""The log of a model process: nothing that came from outside can forge a line of it or flood it."""

from __future__ import annotations

import logging
import time

#: Of one record, its traceback included.
MAX_CHARACTERS = 8000
#: Records of one place in the code are apart by so much; those between are counted.
INTERVAL_S = 1.0


def start_logging(model: str) -> None:
    """Send the log of this model process to the server's log, under the model's name."""
    handler = logging.StreamHandler()
    handler.addFilter(RateLimit())
    handler.setFormatter(SafeFormatter(f"%(levelname)s {model}: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class SafeFormatter(logging.Formatter):
    """A record begins at the margin and its further lines (a traceback) do not; what cannot be printed is escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)[:MAX_CHARACTERS], "\n").replace("\n", "\n    ")


class RateLimit(logging.Filter):
    """At most one record per INTERVAL_S from each place in the code."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int], tuple[float, int]] = {}  # place -> when it was shown, how many were not since

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), time.monotonic()
        shown_s, left_out = self._last.get(place, (-INTERVAL_S, 0))
        if now - shown_s < INTERVAL_S:
            self._last[place] = shown_s, left_out + 1
            return False
        self._last[place] = now, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more)", None
        return True


def printable(text: str, but: str = "") -> str:
    """`text` with control characters, line separators and the like as escapes; those in `but` stay."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in but else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )
