"""Draws one token per row from logits, on whatever device they are, without waiting for it.

The same draw as in `engines.torch_language_model` and inside the MCTP network. The number of candidates sorted is
fixed, so that a row's draw does not depend on its company.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(
    logits: Tensor,
    seen: Tensor,
    penalty: Tensor,
    inv_temp: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    uniform: Tensor,
    candidates: int,
) -> Tensor:
    """One id per row: repetition penalty, temperature, top-k, top-p, then the inverse of the cumulative distribution.

    Args:
        logits: float32 [rows, ids]; ids that must not come out are at the lowest float / 4.
        seen: bool [rows, ids], ids the penalty applies to.
        penalty, inv_temp, top_p, uniform: float32 [rows]; top_k: int32 [rows], 1 is greedy.
        candidates: the largest top_k there can be.

    Returns:
        int64 [rows].
    """
    penalised = torch.where(logits < 0, logits * penalty[:, None], logits / penalty[:, None])
    values, ids = torch.where(seen, penalised, logits).topk(candidates)  # [rows, candidates], falling
    rank = torch.arange(candidates, device=logits.device)
    p = (values * inv_temp[:, None]).masked_fill(rank >= top_k[:, None], float("-inf")).softmax(1)
    p = torch.where(p.cumsum(1) - p < top_p[:, None], p, 0.0)
    chosen = (p.cumsum(1) <= uniform[:, None] * p.sum(1, keepdim=True)).sum(1)
    # A uniform draw just below 1 can pass every candidate by rounding: the last one with any mass is meant.
    chosen = torch.minimum(chosen, (p > 0).sum(1) - 1)
    return ids.gather(1, chosen[:, None])[:, 0]
