"""Products with weights, and what follows them: a bias, a residual, or the gate of a feed-forward.

The kernel is for bfloat16 rows. Of few rows it reads each weight once, and so is bound by memory (`linear_tiling.py`).
Blocks that share the K of a tile add in the order of K, whichever comes last, so a result never depends on timing; and
of up to FEW_ROWS rows each is the same, bit by bit, in any company: rows are padded to FEW_ROWS, and a tiling is
chosen for a product and not for its rows.

Weights in FP8 become bfloat16, exactly, on their way to the matrix units, for any number of rows: to write them out in
bfloat16 first would move five times their bytes, at each of the calls of up to 64 rows that memory limits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.fp8 import Fp8Matrix, Matrix, dequantise
from vita_audio.engines.torch_cuda.kernels import gate as gate_operation
from vita_audio.engines.torch_cuda.kernels.language import launch_next, launch_options, tl, triton, wait_for_previous
from vita_audio.engines.torch_cuda.kernels.linear_tiling import (
    FEW_ROWS,
    MAX_SPLIT_TILES,
    Product,
    Tiling,
    few_rows,
    many_rows,
)

#: Compute capability from which a GPU converts FP8 itself; before it, integer arithmetic does.
_CONVERTS_FP8 = 89
#: Bytes that memory moves at once, and steps of K whose weights a block asks for before the kernel ahead has ended.
_LINE_BYTES, _STEPS_AHEAD = 128, 4


def reference(
    x: Tensor,
    weight: Matrix,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gate: bool = False,
    gated: Callable[[Tensor], Tensor] = gate_operation.reference,
) -> Tensor:
    """x [rows, K] times weight [N, K], by cuBLAS on a GPU.

    Args:
        weight: in FP8 it is written out in x's type first.
        bias: [N].
        residual: [rows, N], added; its memory becomes the result's, since a copy would be a launch of its own. Not
            together with `gate`.
        gate: `silu(first half) * second half` of the product is returned: [rows, N / 2].
        gated: what does that.

    Returns:
        [rows, N].
    """
    if isinstance(weight, Fp8Matrix):
        weight = dequantise(weight, x.dtype)
    if residual is not None and bias is None:
        return residual.addmm_(x, weight.t())
    product = F.linear(x, weight, bias)
    if residual is not None:
        return residual.add_(product)
    return gated(product) if gate else product


@dataclass(frozen=True, slots=True)
class Launches:
    """How the kernel is launched on a GPU.

    Attributes:
        processors, capability: of the GPU.
        arrived: int32 [MAX_SPLIT_TILES], all zero between launches: blocks of a tile that are done.
        tilings: of products of few rows; None: cuBLAS is faster, or no tiling is right. One that is not here takes the
            first of `few_rows`.
    """

    processors: int
    capability: int
    arrived: Tensor
    tilings: Mapping[Product, Tiling | None] = field(default_factory=dict)

    @classmethod
    def on(cls, device: torch.device, processors: int, capability: int) -> Launches:
        return cls(processors, capability, torch.zeros(MAX_SPLIT_TILES, dtype=torch.int32, device=device))

    def tiling(self, product: Product, rows: int) -> Tiling | None:
        """None: cuBLAS."""
        if rows <= FEW_ROWS:
            default = few_rows(product, self.processors)[0]
            return self.tilings.get(product, default)
        return many_rows(product, rows, self.processors) if product.fp8 else None


def fused(
    x: Tensor,
    weight: Matrix,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gate: bool = False,
    *,
    launches: Launches,
    gated: Callable[[Tensor], Tensor] = gate_operation.reference,
    pdl: bool = False,
) -> Tensor:
    """`reference` in one launch where that is faster, rounded once."""
    fp8 = isinstance(weight, Fp8Matrix)
    values: Tensor = weight.values if isinstance(weight, Fp8Matrix) else weight
    n, k = values.shape
    tiling = launches.tiling(Product(n, k, fp8, gate, residual is not None), len(x))
    if tiling is None or x.dtype != torch.bfloat16:
        return reference(x, weight, bias, residual, gate, gated)
    return launch(x, weight, bias, residual, gate, launches, tiling, pdl)


def launch(
    x: Tensor,
    weight: Matrix,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: bool,
    launches: Launches,
    tiling: Tiling,
    pdl: bool = False,
) -> Tensor:
    """The kernel with a tiling."""
    values, scale = weight if isinstance(weight, Fp8Matrix) else (weight, None)
    arithmetic = scale is not None and launches.capability < _CONVERTS_FP8
    rows, (n, k) = len(x), values.shape
    columns = n // 2 if gate else n
    out = x.new_empty(rows, columns) if residual is None else residual
    line = _LINE_BYTES // values.element_size()
    tiles = triton.cdiv(rows, tiling.block_m), triton.cdiv(columns, tiling.block_n)
    partial = None
    if tiling.split > 1:
        partial = x.new_empty(
            tiles[0] * tiles[1], tiling.split, 1 + gate, tiling.block_n, tiling.block_m, dtype=torch.float32
        )
    _linear_kernel[(tiles[0], tiling.split, tiles[1])](
        x, values.view(torch.uint8) if arithmetic else values, scale, bias, residual, out, partial, launches.arrived,
        rows, columns, k, tiling.split,
        BLOCK_M=tiling.block_m, BLOCK_N=tiling.block_n, BLOCK_K=tiling.block_k, EVEN=k % tiling.block_k == 0,
        GATE=gate, ARITHMETIC=arithmetic, LINE=line, LINES=max(1, _STEPS_AHEAD * tiling.block_k // line), PDL=pdl,
        num_stages=tiling.stages, num_warps=tiling.warps, **launch_options(pdl),
    )  # fmt: skip
    return out


@triton.jit
def _prefetch(at):
    """Bring lines of memory into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _tile(at, k, K, EVEN: tl.constexpr):
    """Weights [columns, BLOCK_K] as they are stored."""
    return tl.load(at) if EVEN else tl.load(at, mask=k[None, :] < K, other=0.0)


@triton.jit
def _widened(w, like: tl.constexpr, SCALED: tl.constexpr, ARITHMETIC: tl.constexpr):
    """Weights in the type of rows."""
    if ARITHMETIC:  # sign, 4 bits of exponent and 3 of fraction, moved to where a float32 has them
        bits = w.to(tl.uint32)
        bits = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        w = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120: the difference of exponent biases
    elif SCALED:  # by float32: there is a fast instruction for each step, and none from FP8 or float16 to bfloat16
        w = w.to(tl.float16).to(tl.float32)
    return w.to(like)


@triton.jit
def _summed(partial, place, split, BLOCK: tl.constexpr, HALVES: tl.constexpr):
    """Of all parts of a tile, in the order of K."""
    total = tl.load(partial + place, cache_modifier=".cg")
    for part in range(1, split):
        total += tl.load(partial + part * HALVES * BLOCK + place, cache_modifier=".cg")
    return total


@triton.jit(do_not_specialize=["rows", "columns", "split"])
def _linear_kernel(
    x, weight, scale, bias, residual, out, partial, arrived, rows, columns, K, split,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, GATE: tl.constexpr,
    ARITHMETIC: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Block (tile of rows, part of K, tile of columns): weights are the left operand, which the matrix units of a
    Hopper take from shared memory or, converted, from registers."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(K, BLOCK_K)
    each = tl.cdiv(steps, split)
    first = tl.program_id(1) * each
    end = tl.minimum(first + each, steps)
    column = tl.minimum(n, columns - 1).to(tl.int64)[:, None]  # beyond the last one: read it again
    half = columns.to(tl.int64) * K
    if PDL:
        line = tl.arange(0, LINES)[None, :] * LINE
        ahead = weight + column * K + tl.minimum(first * BLOCK_K + line, K - 1)
        _prefetch(ahead)
        if GATE:
            _prefetch(ahead + half)
    wait_for_previous(PDL)
    launch_next(PDL)
    w_at = weight + column * K + k[None, :]
    x_at = x + m.to(tl.int64)[None, :] * K + k[:, None]
    real = (m < rows)[None, :]
    made = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up = made
    for step in range(first, end):
        at = step * BLOCK_K
        inside = real if EVEN else real & (k + at < K)[:, None]
        rows_of_x = tl.load(x_at + at, mask=inside, other=0.0)
        w = _widened(_tile(w_at + at, k + at, K, EVEN), x.dtype.element_ty, scale is not None, ARITHMETIC)
        made = tl.dot(w, rows_of_x, made)
        if GATE:
            w = _widened(_tile(w_at + half + at, k + at, K, EVEN), x.dtype.element_ty, scale is not None, ARITHMETIC)
            up = tl.dot(w, rows_of_x, up)
    if partial is not None:
        BLOCK: tl.constexpr = BLOCK_N * BLOCK_M
        HALVES: tl.constexpr = 2 if GATE else 1
        tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        partial += tile.to(tl.int64) * split * HALVES * BLOCK
        mine = partial + tl.program_id(1) * HALVES * BLOCK + place
        tl.store(mine, made)
        if GATE:
            tl.store(mine + BLOCK, up)
        tl.debug_barrier()  # what the threads of this block stored comes before its arrival
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu") != split - 1:
            return
        tl.store(arrived + tile, 0)
        made = _summed(partial, place, split, BLOCK, HALVES)
        if GATE:
            up = _summed(partial + BLOCK, place, split, BLOCK, HALVES)
    if scale is not None:
        made *= tl.load(scale + column)
        if GATE:
            up *= tl.load(scale + columns + column)
    if bias is not None:
        made += tl.load(bias + column).to(tl.float32)
        if GATE:
            up += tl.load(bias + columns + column).to(tl.float32)
    if GATE:
        made = made * tl.sigmoid(made) * up
    put = m[None, :] * columns + n[:, None]
    inside = real & (n < columns)[:, None]
    if residual is not None:
        made += tl.load(residual + put, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + put, made.to(out.dtype.element_ty), mask=inside)
