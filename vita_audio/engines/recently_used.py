"""What is kept of earlier work, up to a number of bytes: what was used least recently is given up first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """Values by key; of one thread.

    Args:
        most_bytes: of all values together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Value | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, value: Value, size_bytes: int) -> None:
        """Keep a value that `get` did not find."""
        self._kept[key] = value, size_bytes
        self._bytes += size_bytes
        while self._bytes > self._most:
            self.give_up()

    def give_up(self) -> None:
        """Drop the value that was used least recently. Raises KeyError when none is kept."""
        self._bytes -= self._kept.popitem(last=False)[1][1]
