"""Which slot a stream takes: ended streams leave their cache behind, and a prompt that begins like one goes on there.

A conversation's next turn repeats all turns before it, so the slot that made them needs to read only what is new. The
cache is nothing but memory: a slot is taken whenever a stream needs one, and a prompt that finds nothing reads it all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Two conversations of one system turn begin alike. Only a slot that saves this many tokens more than the one used
#: least recently is taken in its place: else every new conversation would end the one that was last active.
WORTH_TOKENS = 32


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Counts since the start: `hits` of all `prompts` found some of their tokens, `reused` of all `prompt_tokens`;
    `evicted` tokens were given up for a stream that went on from none of them."""

    prompts: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    reused: int = 0
    evicted: int = 0


class PrefixCache:
    """The free slots of an engine, and the tokens that each of them holds, by their keys (`content_keys.py`).

    Args:
        slots: of the engine; all are free and empty at first.
        reuse: False forgets what a stream leaves: every prompt is read from its beginning.
    """

    def __init__(self, slots: int, reuse: bool = True) -> None:
        self._reuse = reuse
        self._free: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._fill(slots)

    def _fill(self, slots: int) -> None:
        # Least recently used first; empty ones, lowest first, before all: a batch on a CPU spans slots [0, highest].
        self._free = OrderedDict((slot, np.zeros(0, np.int64)) for slot in range(slots))
        self._stats = PrefixStats()

    def __bool__(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    @property
    def stats(self) -> PrefixStats:
        return self._stats

    def reset(self) -> None:
        """As it was at first: every slot must be free."""
        self._fill(len(self._free))

    def choose(self, keys: Sequence[int]) -> tuple[int, int]:
        """The free slot for a prompt, and how many of its first tokens the slot holds: at least one is left to read.

        That with the longest common beginning, if it is worth it (`WORTH_TOKENS`), else the least recently used.
        """
        wanted = np.asarray(keys[:-1], np.int64)
        common = {slot: _common(wanted, held) for slot, held in self._free.items()}
        oldest = next(iter(self._free))
        longest = max(self._free, key=lambda slot: common[slot])
        slot = longest if common[longest] - common[oldest] >= WORTH_TOKENS else oldest
        return slot, common[slot]

    def take(self, slot: int, prompt_tokens: int, keep: int) -> None:
        """A stream has begun in `slot` with `keep` of its tokens."""
        held = len(self._free.pop(slot))
        stats = self._stats
        self._stats = PrefixStats(
            stats.prompts + 1,
            stats.hits + bool(keep),
            stats.prompt_tokens + prompt_tokens,
            stats.reused + keep,
            stats.evicted + held - keep,
        )

    def put(self, slot: int, keys: Sequence[int]) -> None:
        """`slot` is free; its cache holds the tokens of `keys`, the newest of all."""
        held = np.asarray(keys if self._reuse else (), np.int64)
        self._free[slot] = held
        if not len(held):  # before those that hold something, in the order of their numbers
            empty = sorted(slot for slot, held in self._free.items() if not len(held))
            for one in reversed(empty):
                self._free.move_to_end(one, last=False)

    def forget(self, slot: int) -> None:
        """What a free slot holds is not to be relied on."""
        self.put(slot, ())


def _common(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """How many first numbers are equal."""
    shorter = min(len(left), len(right))
    unequal = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(unequal[0]) if len(unequal) else shorter
