"""Decode attention as one GPU kernel: keys of a stream are split over many blocks, so that one stream fills the GPU.

Written in the GPU language Triton (it comes with PyTorch for CUDA; no relation to the inference server). Reads slot
caches in place and only as far as each stream goes; lengths come from device tensors, so a captured graph serves all.
Method: attention with an online softmax, and a second kernel that joins the splits by their log-sum-exp (flash
decoding). Heads that share keys are rows of one block: keys are read once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vita_audio.engines.torch_cuda.kernels.language import launch_next, launch_options, tl, triton, wait_for_previous
from vita_audio.engines.torch_cuda.network import Attend, Spans
from vita_audio.engines.torch_cuda.shapes import Shape

_BLOCK_ROWS = 64
BLOCK_KEYS = 64
NUM_STAGES = 2
_MAX_SPLITS = 32
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Launch:
    """How the kernel is launched: `block_rows` rows (of query heads that share keys) a block, `blocks` of them for each
    stream and key head, and `splits` parts that its keys are split into; `warps` of a block."""

    block_rows: int
    blocks: int
    splits: int
    warps: int


def launch(shape: Shape, heads: int, kv_heads: int, dim: int, processors: int, capability: int) -> Launch:
    """Enough blocks for `processors` multiprocessors, twice over, where the keys can be split that often."""
    group_rows = shape.stream_rows * heads // kv_heads
    block_rows = max(16, min(_BLOCK_ROWS, triton.next_power_of_2(group_rows)))
    blocks = triton.cdiv(group_rows, block_rows)
    wanted = 2 * processors // (blocks * shape.streams * kv_heads)
    splits = max(1, min(_MAX_SPLITS, triton.next_power_of_2(wanted + 1) // 2))
    return Launch(block_rows, blocks, splits, warps_of(block_rows, dim, capability))


def warps_of(block_rows: int, dim: int, capability: int) -> int:
    """As few as hold a block in registers: but on Hopper (90), four warps spill where a block has all its rows and
    large heads; with small ones, eight do."""
    return 8 if block_rows == _BLOCK_ROWS and dim > 64 and capability != 90 else 4


def padded(dim: int) -> int:
    """A head's size as the kernel lays it out."""
    return max(16, triton.next_power_of_2(dim))


def attend_split(
    shape: Shape, spans: Spans, context: int, processors: int, capability: int = 90, pdl: bool = False
) -> Attend:
    """Attention of packed rows against slot caches of `context` rows each.

    Args:
        shape, spans: of the call.
        context: rows of a slot.
        processors: the GPU's multiprocessors.
        capability: its compute capability, 90 for 9.0.
        pdl: programmatic dependent launch.
    """

    def attend(q: Tensor, cache: Tensor) -> Tensor:
        rows, heads, dim = q.shape
        kv_heads = cache.shape[2]
        sizes = launch(shape, heads, kv_heads, dim, processors, capability)
        splits = sizes.splits
        out = torch.empty(rows, heads, dim, dtype=q.dtype, device=q.device)
        # Parts of padding rows are never written: what is joined from them is arbitrary, and not read.
        part = torch.empty(rows, heads, splits, dim, device=q.device) if splits > 1 else out
        weight = torch.empty(rows, heads, splits, device=q.device)
        padded_dim = padded(dim)
        _attend_kernel[(sizes.blocks, shape.streams * kv_heads, splits)](
            q, cache, part, weight, spans.slot, spans.first, spans.count, spans.start,
            dim**-0.5 * _LOG2_E, context, q.stride(0),
            SPLITS=splits, HEADS=heads, KV_HEADS=kv_heads, DIM=dim, PADDED_DIM=padded_dim,
            ROWS=sizes.block_rows, KEYS=BLOCK_KEYS, PDL=pdl,
            num_warps=sizes.warps, num_stages=NUM_STAGES, **launch_options(pdl),
        )  # fmt: skip
        if splits > 1:
            _join_kernel[(rows * heads,)](
                part, weight, out, SPLITS=splits, DIM=dim, PADDED_DIM=padded_dim, PDL=pdl, **launch_options(pdl)
            )
        return out

    return attend


# These lie anywhere in the input buffer and are read number by number: a kernel of its own for each alignment would be
# compiled for nothing.
@triton.jit(do_not_specialize_on_alignment=["slot", "first", "count", "start"])
def _attend_kernel(
    q, cache, part, weight, slot, first, count, start, scale, context, q_stride,
    SPLITS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PADDED_DIM: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Block (rows, stream and kv head, split): attention over this split's keys, and the log2 of its weight."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    block, split = tl.program_id(0), tl.program_id(2)
    stream, kv_head = tl.program_id(1) // KV_HEADS, tl.program_id(1) % KV_HEADS
    rows = tl.load(count + stream).to(tl.int32)
    begin = tl.load(start + stream).to(tl.int32)
    first_row = tl.load(first + stream)
    slot_row = tl.load(slot + stream) * context
    wait_for_previous(PDL)
    launch_next(PDL)
    if block * ROWS >= rows * GROUP:
        return
    index = block * ROWS + tl.arange(0, ROWS)
    row, head = index // GROUP, kv_head * GROUP + index % GROUP
    alive = row < rows
    packed = first_row + row  # int64 [ROWS]
    d = tl.arange(0, PADDED_DIM)
    real = d < DIM
    at = packed[:, None] * q_stride + head[:, None] * DIM + d[None, :]
    query = tl.load(q + at, mask=alive[:, None] & real[None, :], other=0.0)

    length = begin + rows
    per_split = tl.cdiv(tl.cdiv(length, KEYS), SPLITS) * KEYS
    low = split * per_split
    high = tl.minimum(low + per_split, length)
    keys = cache + slot_row * (2 * KV_HEADS * DIM) + kv_head * DIM
    values = keys + KV_HEADS * DIM
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    for n0 in range(low, high, KEYS):
        n = n0 + tl.arange(0, KEYS)
        step = n * (2 * KV_HEADS * DIM)
        k = tl.load(keys + step[None, :] + d[:, None], mask=(n < high)[None, :] & real[:, None], other=0.0)
        score = tl.dot(query, k, input_precision="ieee") * scale  # [ROWS, KEYS], in powers of two
        visible = (n[None, :] <= begin + row[:, None]) & (n < high)[None, :]
        score = tl.where(visible, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(score - shift[:, None])
        fade = tl.exp2(top - shift)
        v = tl.load(values + step[:, None] + d[None, :], mask=(n < high)[:, None] & real[None, :], other=0.0)
        total = total * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new_top

    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    place = (packed * HEADS + head) * SPLITS + split
    whole = alive[:, None] & real[None, :]
    tl.store(part + place[:, None] * DIM + d[None, :], mixed.to(part.dtype.element_ty), mask=whole)
    tl.store(weight + place, tl.where(total > 0, top + tl.log2(total), float("-inf")), mask=alive)


@triton.jit
def _join_kernel(
    part, weight, out, SPLITS: tl.constexpr, DIM: tl.constexpr, PADDED_DIM: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Block (row and head): mean of the splits by their weights."""
    wait_for_previous(PDL)
    launch_next(PDL)
    place = tl.program_id(0).to(tl.int64)
    split, d = tl.arange(0, SPLITS), tl.arange(0, PADDED_DIM)
    w = tl.load(weight + place * SPLITS + split)
    w = tl.exp2(w - tl.max(w, 0))
    at = (place * SPLITS + split[:, None]) * DIM + d[None, :]
    parts = tl.load(part + at, mask=(d < DIM)[None, :], other=0.0)
    mixed = tl.sum(parts * w[:, None], 0) / tl.sum(w, 0)
    tl.store(out + place * DIM + d, mixed.to(out.dtype.element_ty), mask=d < DIM)
