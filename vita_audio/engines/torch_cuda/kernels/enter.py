"""What an MCTP module feeds its projection: rows of the embedding and hidden states, each normed, side by side."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.kernels import norm
from vita_audio.engines.torch_cuda.kernels.language import (
    launch_next,
    launch_options,
    power_of_two,
    tl,
    triton,
    wait_for_previous,
    warps,
)
from vita_audio.engines.torch_cuda.kernels.norm import normed


def reference(
    ids: Tensor,
    id_at: Tensor,
    shift: int,
    embedding: Tensor,
    hidden: Tensor,
    hidden_at: Tensor | None,
    embed_norm: Tensor,
    hidden_norm: Tensor,
    eps: float,
) -> Tensor:
    """Embedding first, then the hidden state.

    Args:
        ids: int64 [any], token ids.
        id_at, shift: int64 [rows]; the token of row r is `ids[id_at[r] + shift]`.
        embedding: [vocab, hidden].
        hidden: [any, hidden]; of row r: `hidden[hidden_at[r]]`, or `hidden[r]` where `hidden_at` is None.
        embed_norm, hidden_norm: [hidden].

    Returns:
        [rows, 2 * hidden].
    """
    embedded = F.embedding(ids.index_select(0, id_at + shift), embedding)
    hidden = hidden if hidden_at is None else hidden.index_select(0, hidden_at)
    return torch.cat([norm.reference(embedded, embed_norm, eps), norm.reference(hidden, hidden_norm, eps)], dim=-1)


def fused(
    ids: Tensor,
    id_at: Tensor,
    shift: int,
    embedding: Tensor,
    hidden: Tensor,
    hidden_at: Tensor | None,
    embed_norm: Tensor,
    hidden_norm: Tensor,
    eps: float,
    pdl: bool = False,
) -> Tensor:
    """`reference` in one launch."""
    rows, size = len(id_at), embedding.shape[1]
    block = power_of_two(size)
    out = embedding.new_empty(rows, 2 * size)
    _enter_kernel[(rows, 2)](
        ids, id_at, shift, embedding, hidden, hidden_at, embed_norm, hidden_norm, out, eps,
        HIDDEN=size, BLOCK=block, INDEXED=hidden_at is not None, PDL=pdl,
        num_warps=warps(block), **launch_options(pdl),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["shift"], do_not_specialize_on_alignment=["ids", "id_at", "hidden_at"])
def _enter_kernel(
    ids, id_at, shift, embedding, hidden, hidden_at, embed_norm, hidden_norm, out, eps,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, INDEXED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Block (row, half): 0 is the embedding's, 1 the hidden state's."""
    row, half = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    real = column < HIDDEN
    weight = embed_norm
    if half == 1:
        weight = hidden_norm
    w = tl.load(weight + column, mask=real, other=0.0)
    at = row
    if half == 0:
        at = tl.load(id_at + row) + shift
    elif INDEXED:
        at = tl.load(hidden_at + row)
    wait_for_previous(PDL)
    launch_next(PDL)
    source = hidden + at * HIDDEN
    if half == 0:
        source = embedding + tl.load(ids + at) * HIDDEN
    made = normed(tl.load(source + column, mask=real, other=0.0), w, eps, HIDDEN)
    tl.store(out + (row * 2 + half) * HIDDEN + column, made.to(out.dtype.element_ty), mask=real)
