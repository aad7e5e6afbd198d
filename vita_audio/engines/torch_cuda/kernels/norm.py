"""RMSNorm of every row; and the norm after the last layer, which also picks the rows that are drawn from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.kernels.language import (
    launch_next,
    launch_options,
    power_of_two,
    tl,
    triton,
    wait_for_previous,
    warps,
)


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


def fused(x: Tensor, weight: Tensor, eps: float, pdl: bool = False) -> Tensor:
    """`reference` in one launch."""
    return _launch(x, weight, eps, torch.empty_like(x), None, None, None, pdl)


def final_fused(
    x: Tensor,
    weight: Tensor,
    eps: float,
    last: Tensor,
    store: Tensor | None = None,
    at: Tensor | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """`final_reference` in one launch: the rows of `last` are normed twice instead of being copied."""
    picked = x.new_empty(len(last), x.shape[1])
    store = torch.empty_like(x) if store is None else store
    return _launch(x, weight, eps, store, at, picked, last, pdl), picked


def _launch(
    x: Tensor,
    weight: Tensor,
    eps: float,
    store: Tensor,
    at: Tensor | None,
    picked: Tensor | None,
    last: Tensor | None,
    pdl: bool,
) -> Tensor:
    rows, hidden = x.shape
    block = power_of_two(hidden)
    _norm_kernel[(rows + (0 if last is None else len(last)),)](
        x, weight, store, at, picked, last, eps, rows,
        HIDDEN=hidden, BLOCK=block, INDEXED=at is not None, PICKED=last is not None, PDL=pdl,
        num_warps=warps(block), **launch_options(pdl),
    )  # fmt: skip
    return store


@triton.jit
def normed(x, w, eps, HIDDEN: tl.constexpr):
    """RMSNorm of one row, in float32; beyond HIDDEN both x and w are zero."""
    x = x.to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, 0) / HIDDEN + eps) * w.to(tl.float32)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["at", "last"])
def _norm_kernel(
    x, weight, store, at, picked, last, eps, rows,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, INDEXED: tl.constexpr, PICKED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Block r < rows: row r; block rows + s: the row of stream s that is drawn from."""
    block = tl.program_id(0)
    row = block.to(tl.int64)
    column = tl.arange(0, BLOCK)
    real = column < HIDDEN
    w = tl.load(weight + column, mask=real, other=0.0)
    into = store + row * HIDDEN
    if INDEXED:
        into = store + tl.load(at + row, mask=block < rows, other=0) * HIDDEN
    if PICKED:
        picks = block >= rows
        if picks:
            into = picked + (row - rows) * HIDDEN
            row = tl.load(last + row - rows)
    wait_for_previous(PDL)
    launch_next(PDL)
    made = normed(tl.load(x + row * HIDDEN + column, mask=real, other=0.0), w, eps, HIDDEN)
    tl.store(into + column, made.to(store.dtype.element_ty), mask=real)
