"""A table on the device of rows that stand in a prompt in place of ids, for engines that run on PyTorch.

Each such row has an id behind those of the vocabulary, by which a program or an engine finds it: how much speech there
is in a call decides no program, and a decode step does nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Floats


class PromptRows:
    """Rows of one call at a time.

    Args:
        table: [rows, hidden]: where they go.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        on_gpu = table.device.type == "cuda"
        self._staging = torch.empty(table.shape, dtype=table.dtype, device="cpu", pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None

    def put(self, parts: Sequence[Floats]) -> None:
        """Start the copy of rows [n, hidden] each to the first of the table, one after the other.

        Raises:
            EngineError: there are more than the table has.
        """
        count = sum(map(len, parts))
        if count > len(self.table):
            raise EngineError(
                f"embedded: {count} rows in one call, the engine has room for {len(self.table)}; "
                "read prompts by the chunk that it was prepared for"
            )
        if self._copied is not None:
            self._copied.synchronize()  # the last call's rows have left the staging buffer
        start = 0
        for rows in parts:
            self._staging[start : start + len(rows)] = torch.from_numpy(np.ascontiguousarray(rows))
            start += len(rows)
        self.table[:count].copy_(self._staging[:count], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
