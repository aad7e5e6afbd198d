"""The middle of a feed-forward: silu(gate) * up."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def reference(gate_up: Tensor) -> Tensor:
    """gate_up [rows, 2 * intermediate], gate first -> [rows, intermediate]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
