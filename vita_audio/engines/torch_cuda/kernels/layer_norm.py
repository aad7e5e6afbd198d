"""A residual stream takes what a layer made, and the next layer's LayerNorm follows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.kernels.language import power_of_two, tl, triton, warps


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float, made: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x + made, and its LayerNorm.

    Args:
        x, made: [..., channels], contiguous; None adds nothing.
        weight, bias: [channels].

    Returns:
        The sum (x itself without `made`), and its norm.
    """
    x = x if made is None else x + made
    return x, F.layer_norm(x, weight.shape, weight, bias, eps)


def fused(x: Tensor, weight: Tensor, bias: Tensor, eps: float, made: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`reference` in one launch; the norm is taken of the sum before that is rounded."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    out, total = torch.empty_like(x), x if made is None else torch.empty_like(x)
    block = power_of_two(channels)
    _layer_norm_kernel[(rows,)](
        x, made, total, weight, bias, out, eps,
        CHANNELS=channels, BLOCK=block, ADDED=made is not None, num_warps=warps(block),
    )  # fmt: skip
    return total, out


@triton.jit
def _layer_norm_kernel(
    x, made, total, weight, bias, out, eps, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ADDED: tl.constexpr
):
    """Block r: row r."""
    first = tl.program_id(0).to(tl.int64) * CHANNELS
    column = tl.arange(0, BLOCK)
    real = column < CHANNELS
    value = tl.load(x + first + column, mask=real, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(made + first + column, mask=real, other=0.0).to(tl.float32)
        tl.store(total + first + column, value.to(total.dtype.element_ty), mask=real)
    centred = tl.where(real, value - tl.sum(value, 0) / CHANNELS, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / CHANNELS + eps)
    w = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
    tl.store(out + first + column, (centred * scale * w + b).to(out.dtype.element_ty), mask=real)
