"""Between the QKV product and attention: bias, rotary embedding, and keys and values into the slot cache."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(qkv: Tensor, bias: Tensor, rotary: Tensor, position: Tensor, cache: Tensor, cache_row: Tensor) -> Tensor:
    """Adds and turns in float32; rounds once.

    Args:
        qkv: [rows, (heads + 2 * kv_heads) * dim], the product without its bias.
        bias: [(heads + 2 * kv_heads) * dim].
        rotary: float32 [context, 2, dim / 2], see `rotary_tables`.
        position: int64 [rows], rows of `rotary`.
        cache: [cache rows, 2, kv_heads, dim]; keys and values of row r are written to `cache[cache_row[r]]`.
        cache_row: int64 [rows].

    Returns:
        Rotated q [rows, heads, dim].
    """
    kv_heads, dim = cache.shape[2:]
    both = (qkv.float() + bias.float()).unflatten(-1, (-1, dim))
    heads = both.shape[1] - 2 * kv_heads
    first, second = both[:, : heads + kv_heads].chunk(2, dim=-1)
    cos, sin = rotary.index_select(0, position).split(1, dim=1)  # each [rows, 1, dim / 2]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    kv = torch.stack((turned[:, heads:], both[:, heads + kv_heads :]), dim=1)
    cache.index_copy_(0, cache_row, kv.to(cache.dtype))
    return turned[:, :heads].to(qkv.dtype)
