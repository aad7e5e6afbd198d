"""What asyncio raises `CancelledError` for: a task that somebody cancels, or a call that was cancelled beneath it."""

from __future__ import annotations

import asyncio


def task_is_cancelled() -> bool:
    """Whether the running task itself is being cancelled (Python 3.11 and later can tell)."""
    task = asyncio.current_task()
    cancelling = getattr(task, "cancelling", None)
    return cancelling is not None and cancelling() > 0
