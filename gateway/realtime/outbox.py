"""What waits to be sent to one client: bounded, and emptied of an answer that was interrupted."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio


class NotRead(Exception):
    """The client does not read: the connection is to end."""


@dataclass(slots=True)
class _Waiting:
    text: str
    sound_of: str
    on_sent: Callable[[], None] | None


class Outbox:
    """Events in order. `put` never waits; a task that makes many waits for `room` in between.

    Args:
        max_bytes: more than this waiting is no room.
        patience_s: how long there may be no room.
    """

    def __init__(self, max_bytes: int = 1 << 20, patience_s: float = 20.0) -> None:
        self._max_bytes, self._patience_s = max_bytes, patience_s
        self._waiting: deque[_Waiting] = deque()
        self._bytes, self._sending = 0, False
        self._some, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()

    def put(self, event: dict[str, Any], sound_of: str = "", on_sent: Callable[[], None] | None = None) -> None:
        """Send `event` after those that wait. `sound_of`: the response whose sound it is; `on_sent`: called then."""
        self._waiting.append(_Waiting(json.dumps(event, separators=(",", ":")), sound_of, on_sent))
        self._count(len(self._waiting[-1].text))

    def discard(self, response_id: str) -> None:
        """The sound of a response that was not sent yet is not wanted any more."""
        dropped = [entry for entry in self._waiting if entry.sound_of == response_id]
        self._waiting = deque(entry for entry in self._waiting if entry.sound_of != response_id)
        self._count(-sum(len(entry.text) for entry in dropped))

    @property
    def empty(self) -> bool:
        """Whether everything was sent."""
        return not self._waiting and not self._sending

    async def room(self) -> None:
        """Wait until there is room. Raises NotRead."""
        if not self._room.is_set():
            await self._patiently(self._room.wait())

    async def run(self, send: Callable[[str], Awaitable[None]]) -> None:
        """Send what comes, until cancelled. Raises NotRead: one event could not be sent."""
        while True:
            while not self._waiting:
                await self._some.wait()
            entry = self._waiting.popleft()
            self._count(-len(entry.text))
            self._sending = True
            await self._patiently(send(entry.text))
            self._sending = False
            if entry.on_sent is not None:
                entry.on_sent()

    async def _patiently(self, something: Awaitable[Any]) -> None:
        try:
            with anyio.fail_after(self._patience_s):  # asyncio.wait_for of Python 3.11 may lose a cancellation
                await something
        except TimeoutError:
            raise NotRead from None

    def _count(self, added: int) -> None:
        self._bytes += added
        _set(self._some, bool(self._waiting))
        _set(self._room, self._bytes <= self._max_bytes)


def _set(flag: asyncio.Event, value: bool) -> None:
    if value:
        flag.set()
    else:
        flag.clear()
