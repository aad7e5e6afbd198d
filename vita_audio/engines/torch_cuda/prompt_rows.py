"""Where a program finds rows that stand in a prompt in place of ids: behind the rows of the vocabulary.

They are rows of the embedding table like any other, found by id, so that captured programs are the same with and
without them and a decode step does nothing more. The MCTP modules get the plain ids (docs/plus.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Floats, Ints


class PromptRows:
    """The rows behind the vocabulary, for one call at a time.

    Args:
        embedding: [vocab + rows, hidden].
        vocab_size: rows of ids.
    """

    def __init__(self, embedding: Tensor, vocab_size: int) -> None:
        self._rows, self._first_id = embedding[vocab_size:], vocab_size
        on_gpu = embedding.device.type == "cuda"
        self._staging = torch.empty(self._rows.shape, dtype=embedding.dtype, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, parts: Sequence[Floats]) -> Ints:
        """Ids of rows [n, hidden] each, one after the other, until the next call. Starts their copy to the device.

        Raises:
            EngineError: there are more than this holds.
        """
        count = sum(map(len, parts))
        if count > len(self):
            raise EngineError(
                f"embedded: {count} rows in one call, the engine has room for {len(self)}; "
                "read prompts by the chunk that it was prepared for"
            )
        if self._copied is not None:
            self._copied.synchronize()  # the last call's rows have left the staging buffer
        start = 0
        for rows in parts:
            self._staging[start : start + len(rows)] = torch.from_numpy(np.ascontiguousarray(rows))
            start += len(rows)
        self._rows[:count].copy_(self._staging[:count], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self._first_id + np.arange(count)
