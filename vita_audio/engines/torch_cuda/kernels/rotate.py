"""Between the QKV product and attention: bias, rotary embedding, and keys and values into the slot cache."""

from __future__ import annotations

import torch
from torch import Tensor

from vita_audio.engines.torch_cuda.kernels.language import (
    launch_next,
    launch_options,
    power_of_two,
    tl,
    triton,
    wait_for_previous,
    warps,
)

#: Heads of a block: few, so that one row fills several multiprocessors.
_HEADS = 4


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


def fused(
    qkv: Tensor,
    bias: Tensor,
    rotary: Tensor,
    position: Tensor,
    cache: Tensor,
    cache_row: Tensor,
    pdl: bool = False,
) -> Tensor:
    """`reference` in one launch."""
    rows, width = qkv.shape
    kv_heads, dim = cache.shape[2:]
    heads, half = width // dim - 2 * kv_heads, power_of_two(dim // 2)
    q = qkv.new_empty(rows, heads, dim)
    _rotate_kernel[(rows, triton.cdiv(width // dim, _HEADS))](
        qkv, bias, rotary, position, cache, cache_row, q,
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, BLOCK_HEADS=_HEADS, PADDED_HALF=half, PDL=pdl,
        num_warps=warps(2 * _HEADS * half), **launch_options(pdl),
    )  # fmt: skip
    return q


@triton.jit(do_not_specialize_on_alignment=["position", "cache_row"])
def _rotate_kernel(
    qkv, bias, rotary, position, cache, cache_row, q,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, PADDED_HALF: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Block (row, some heads); heads count through q, keys and values, as they lie in the product."""
    HALF: tl.constexpr = DIM // 2
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    d = tl.arange(0, PADDED_HALF)[None, :]
    real = (head < ALL) & (d < HALF)
    at = head * DIM + d  # [heads, dim / 2]
    first_bias = tl.load(bias + at, mask=real, other=0.0).to(tl.float32)
    second_bias = tl.load(bias + at + HALF, mask=real, other=0.0).to(tl.float32)
    angle = rotary + tl.load(position + row) * DIM + d
    turns = head < HEADS + KV_HEADS  # values do not
    cos = tl.where(turns, tl.load(angle, mask=d < HALF, other=0.0), 1.0)
    sin = tl.where(turns, tl.load(angle + HALF, mask=d < HALF, other=0.0), 0.0)
    into_cache = cache + tl.load(cache_row + row) * (2 * KV_HEADS * DIM) + at - HEADS * DIM
    wait_for_previous(PDL)
    launch_next(PDL)
    product = qkv + row * (ALL * DIM) + at
    first = tl.load(product, mask=real, other=0.0).to(tl.float32) + first_bias
    second = tl.load(product + HALF, mask=real, other=0.0).to(tl.float32) + second_bias
    made_first = (first * cos - second * sin).to(q.dtype.element_ty)
    made_second = (second * cos + first * sin).to(q.dtype.element_ty)

    into_q = q + row * (HEADS * DIM) + at
    is_q = real & (head < HEADS)
    tl.store(into_q, made_first, mask=is_q)
    tl.store(into_q + HALF, made_second, mask=is_q)
    is_kv = real & (head >= HEADS)
    tl.store(into_cache, made_first, mask=is_kv)
    tl.store(into_cache + HALF, made_second, mask=is_kv)
