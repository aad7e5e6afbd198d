"""One clock for a whole process: seconds since the epoch that never step back."""

from __future__ import annotations

import time

_OFFSET_S = time.time() - time.perf_counter()


def now_s() -> float:
    return _OFFSET_S + time.perf_counter()
