"""Chooses one token per row from logits, on whatever device they are, without waiting for it.

The same draw as in `engines.torch_language_model` and inside the MCTP network. Only rows that sample are sorted; the
number of candidates sorted is fixed, so that a row's draw does not depend on its company.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(
    logits: Tensor,
    seen: Tensor,
    penalty: Tensor,
    token_rows: Tensor,
    sampled_rows: Tensor,
    inv_temp: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    uniform: Tensor,
    candidates: int,
) -> Tensor:
    """One id per row: the best after the repetition penalty; for rows that sample, temperature, top-k, top-p, then the
    inverse of the cumulative distribution.

    Args:
        logits: float32 [rows, ids]; ids that must not come out are at the lowest float / 4.
        seen: bool [rows, ids], ids the penalty applies to.
        penalty: float32 [rows].
        token_rows: int32 [rows], b where row b takes its best id, rows + i where it is `sampled_rows[i]`.
        sampled_rows: int32 [sampled], which rows sample; none at all cost nothing.
        inv_temp, top_p, uniform: float32 [sampled]; top_k: int32 [sampled].
        candidates: the largest top_k there can be.

    Returns:
        int64 [rows].
    """
    penalised = torch.where(logits < 0, logits * penalty[:, None], logits / penalty[:, None])
    logits = torch.where(seen, penalised, logits)
    best = logits.argmax(1)
    if not len(sampled_rows):  # the host knows: a shape, not a value
        return best
    values, ids = logits.index_select(0, sampled_rows).topk(candidates)  # [sampled, candidates], falling
    rank = torch.arange(candidates, device=logits.device)
    p = (values * inv_temp[:, None]).masked_fill(rank >= top_k[:, None], float("-inf")).softmax(1)
    p = torch.where(p.cumsum(1) - p < top_p[:, None], p, 0.0)
    chosen = (p.cumsum(1) <= uniform[:, None] * p.sum(1, keepdim=True)).sum(1)
    # A uniform draw just below 1 can pass every candidate by rounding: the last one with any mass is meant.
    chosen = torch.minimum(chosen, (p > 0).sum(1) - 1)
    drawn = ids.gather(1, chosen[:, None])[:, 0]
    return torch.cat([best, drawn]).index_select(0, token_rows)
