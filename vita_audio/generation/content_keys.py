"""Numbers that are equal where prompts are: an id for itself, a row of embeddings by what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from vita_audio.engines.interface import Embedded

_NEGATIVE = -(1 << 63)


def content_keys(tokens: Sequence[int], embedded: Embedded | None) -> Sequence[int]:
    """One key for each token: its id or, at places of `embedded`, a negative number made of the row there.

    All speech has the same id, so ids do not say whether two clips are the same. Rows that were computed anew have to
    be equal to the last bit to count as the same.
    """
    if embedded is None:
        return tokens
    keys = np.array(tokens, np.int64)
    for place, row in zip(embedded.places, np.ascontiguousarray(embedded.rows), strict=True):
        keys[place] = int.from_bytes(blake2b(row, digest_size=8).digest(), "little", signed=True) | _NEGATIVE
    return keys.tolist()
