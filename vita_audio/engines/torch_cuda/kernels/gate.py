"""The middle of a feed-forward: silu(gate) * up."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.kernels.language import (
    launch_next,
    launch_options,
    tl,
    triton,
    wait_for_previous,
    warps,
)

_BLOCK = 1024


def reference(gate_up: Tensor) -> Tensor:
    """gate_up [rows, 2 * intermediate], gate first -> [rows, intermediate]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def fused(gate_up: Tensor, pdl: bool = False) -> Tensor:
    """`reference` in one launch, rounded once."""
    rows, width = gate_up.shape
    size = width // 2
    out = gate_up.new_empty(rows, size)
    _gate_kernel[(rows, triton.cdiv(size, _BLOCK))](
        gate_up, out, SIZE=size, BLOCK=_BLOCK, PDL=pdl, num_warps=warps(_BLOCK), **launch_options(pdl)
    )
    return out


@triton.jit
def _gate_kernel(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Block (row, some columns)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < SIZE
    wait_for_previous(PDL)
    launch_next(PDL)
    at = gate_up + row * (2 * SIZE) + column
    gate = tl.load(at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(at + SIZE, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=real)
