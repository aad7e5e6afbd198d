"""The fixed-shape network: decoder layer and attention over slot caches, as plain functions of tensors.

Rows of all streams are packed along one axis. Every size is fixed by a `Shape`; what varies from call to call (slots,
lengths, positions) is read from device tensors, so that a captured graph serves any call of its shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.kernels.operations import Operations
from vita_audio.engines.torch_cuda.shapes import Shape
from vita_audio.engines.torch_cuda.weights import LayerWeights

#: (q [rows, heads, dim], cache of one layer) -> [rows, heads, dim]
Attend = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the rows of each stream are: all int64 on the device.

    A stream's rows are consecutive: packed rows [first, first + count) at positions [start, start + count) of `slot`.
    Padding streams have count 0. Padding rows write to a cache row that no stream owns, and are not read.
    """

    slot: Tensor  # [streams]
    first: Tensor  # [streams]
    count: Tensor  # [streams]
    start: Tensor  # [streams]
    place: Tensor  # [rows] index into [streams * stream_rows], one beyond it for padding
    position: Tensor  # [rows]
    cache_row: Tensor  # [rows] slot * context + position


def rotary_tables(context: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """cos and sin of every position: float32 [context, 2, head_dim / 2]."""
    inverse = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.arange(context, dtype=torch.float32)[:, None] * inverse
    return torch.stack((angle.cos(), angle.sin()), dim=1).to(device)


def layer(
    x: Tensor, w: LayerWeights, cache: Tensor, rotary: Tensor, spans: Spans, attend: Attend, ops: Operations, eps: float
) -> Tensor:
    """A decoder layer: x [rows, hidden], overwritten, -> [rows, hidden]; keys and values go into `cache`."""
    qkv = ops.linear(ops.norm(x, w.input_norm, eps), w.qkv)
    q = ops.rotate(qkv, w.qkv_bias, rotary, spans.position, cache, spans.cache_row)
    x = ops.linear(attend(q, cache).flatten(1), w.output, residual=x)
    gated = ops.linear(ops.norm(x, w.post_norm, eps), w.gate_up, gate=True)
    return ops.linear(gated, w.down, residual=x)


def attend_rectangle(shape: Shape, spans: Spans, slots: int, group: int) -> Attend:
    """Attention by `scaled_dot_product_attention`: rows are laid out as [streams, stream_rows], and the caches of their
    slots are gathered up to `span` rows. Runs on every device; on a GPU it moves each cache row three times.

    `group` query heads share keys: they become rows of one head, so that keys are read once."""
    streams, rows = shape.streams, shape.stream_rows
    visible = torch.arange(rows, device=spans.start.device) + spans.start[:, None]  # [streams, rows], last key of each
    mask = torch.arange(shape.span, device=visible.device) <= visible[:, :, None]  # [streams, rows, span]
    mask = mask[:, None].expand(-1, group, -1, -1).flatten(1, 2)[:, None]  # [streams, 1, group * rows, span]
    taken = spans.place.clamp(max=streams * rows - 1)

    def attend(q: Tensor, cache: Tensor) -> Tensor:
        heads, dim = q.shape[1:]
        laid = q.new_zeros(streams * rows + 1, heads, dim).index_copy_(0, spans.place, q)[:-1]
        laid = laid.view(streams, rows, -1, group, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
        kv = cache[:-1].unflatten(0, (slots, -1))[:, : shape.span].index_select(0, spans.slot)
        k, v = kv.permute(2, 0, 3, 1, 4)  # each [streams, kv_heads, span, dim]
        out = F.scaled_dot_product_attention(laid, k, v, attn_mask=mask)
        out = out.unflatten(2, (group, rows)).permute(0, 3, 1, 2, 4).reshape(streams * rows, heads, dim)
        return out.index_select(0, taken)

    return attend
