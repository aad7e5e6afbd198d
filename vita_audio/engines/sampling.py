"""Random draws that depend on the request's seed and the token's index alone, so any batch repeats them exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniforms(seed: int, index: int, count: int) -> NDArray[np.float32]:
    """One draw in [0, 1) for each generated token index in [index, index + count): float32 [count].

    Philox is counter based: token i reads word i of the stream keyed by the seed, in whatever range it is asked for.
    """
    block, skip = divmod(index, 4)  # one Philox counter step yields four 64-bit words
    words = np.random.Philox(key=seed, counter=block).random_raw(skip + count)[skip:]
    return ((words >> np.uint64(40)) * 2.0**-24).astype(np.float32)
