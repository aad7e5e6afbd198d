"""Whether a coroutine can be cancelled at any moment, also when what it waits for has just come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def assert_never_lost(begin: Callable[[], tuple[Coroutine[Any, Any, Any], Callable[[], None]]]) -> None:
    """Cancel one step of the loop after what it waits for came, then two, until that is too late.

    Args:
        begin: gives a coroutine, and a function that brings what it waits for.
    """
    for steps in range(20):
        waiting, bring = begin()
        task = asyncio.create_task(waiting)
        await asyncio.sleep(0.001)
        assert not task.done(), "it does not wait"
        bring()
        for _ in range(steps):
            await asyncio.sleep(0)
        if task.done():
            return
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), f"a cancellation {steps} steps after was lost"
    raise AssertionError("it never ends")
