"""What an MCTP module feeds its projection: rows of the embedding and hidden states, each normed, side by side."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.kernels import norm


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
