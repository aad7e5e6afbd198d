"""Rows of embeddings on their way to a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fake_cuda import Dispatched, fake_cuda
from vita_audio.contract.errors import EngineError
from vita_audio.engines.torch.prompt_rows import PromptRows


def test_rows_lie_one_after_the_other() -> None:
    rows = PromptRows(torch.zeros(3, 2))
    rows.put([np.full((1, 2), 5.0, np.float32), np.full((2, 2), 6.0, np.float32)])
    assert rows.table.tolist() == [[5, 5], [6, 6], [6, 6]]
    rows.put([np.full((1, 4), 7.0, np.float32)[:, ::2]])
    assert rows.table[0].tolist() == [7, 7]


def test_more_rows_than_there_is_room_for() -> None:
    with pytest.raises(EngineError, match="embedded: 4 rows in one call, the engine has room for 3"):
        PromptRows(torch.zeros(3, 2)).put([np.ones((1, 2), np.float32), np.ones((3, 2), np.float32)])


def test_one_copy_to_the_device_without_a_wait() -> None:
    """In the type of the table: on a GPU a copy that also converts would wait."""
    with fake_cuda() as device:
        rows = PromptRows(torch.empty(8, 4, device=device, dtype=torch.bfloat16))
        with Dispatched(border=True) as log:
            rows.put([np.ones((1, 4), np.float32), np.ones((2, 4), np.float32)])
    assert (log.copies, log.kernels) == ([("to device", (3, 4))], [])
