"""Random draws that depend on the request's seed and the token's index alone, so any batch repeats them exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Draws that `DrawnAhead` makes at once. A generator costs as much to set up as some hundred draws.
_AHEAD = 256


def uniforms(seed: int, index: int, count: int) -> NDArray[np.float32]:
    """One draw in [0, 1) for each generated token index in [index, index + count): float32 [count].

    Philox is counter based: token i reads word i of the stream keyed by the seed, in whatever range it is asked for.
    """
    block, skip = divmod(index, 4)  # one Philox counter step yields four 64-bit words
    words = np.random.Philox(key=seed, counter=block).random_raw(skip + count)[skip:]
    return ((words >> np.uint64(40)) * 2.0**-24).astype(np.float32)


class DrawnAhead:
    """`uniforms` of one seed, some hundred at a time: a step of many streams then costs the host next to nothing."""

    def __init__(self, seed: int) -> None:
        self._seed, self._first = seed, 0
        self._drawn = np.zeros(0, np.float32)

    def take(self, index: int, count: int) -> NDArray[np.float32]:
        """As `uniforms(seed, index, count)`; the array is shared: read it only."""
        start = index - self._first
        if start < 0 or start + count > len(self._drawn):
            self._first, start = index, 0
            self._drawn = uniforms(self._seed, index, max(count, _AHEAD))
        return self._drawn[start : start + count]
