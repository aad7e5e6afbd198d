"""RMSNorm of every row; and the norm after the last layer, which also picks the rows that are drawn from."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [rows, hidden] -> [rows, hidden]."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def final_reference(
    x: Tensor, weight: Tensor, eps: float, last: Tensor, store: Tensor | None = None, at: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The norm after the last layer.

    Args:
        x: [rows, hidden].
        last: int64 [streams], the row of each stream that is drawn from.
        store, at: where the normed rows are kept: row r in `store[at[r]]`. Without them they are returned only.

    Returns:
        All normed rows [rows, hidden], or `store` where it is given; and those of `last` [streams, hidden].
    """
    normed = reference(x, weight, eps)
    if store is None or at is None:
        return normed, normed.index_select(0, last)
    return store.index_copy_(0, at, normed), normed.index_select(0, last)
