"""The vocoder's activation, with what comes before it: the bias of a convolution and the residual it is added to."""

from __future__ import annotations

import torch
from torch import Tensor

from vita_audio.engines.torch_cuda.kernels.language import tl, triton, warps

_BLOCK = 1024


def reference(
    x: Tensor, alpha: Tensor, inverse: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """snake(s) = s + sin^2(alpha s) * inverse of the sum s = residual + x + bias.

    Args:
        x, residual: [B, T, channels], contiguous.
        alpha, inverse, bias: [channels]; `inverse` is 1 / (alpha + 1e-9).

    Returns:
        The sum (x itself where nothing is added; not to be used where there is a bias and no residual), and its snake.
    """
    if bias is not None:
        x = x + bias
    if residual is not None:
        x = residual + x
    return x, torch.addcmul(x, (x * alpha).sin().square(), inverse)


def fused(
    x: Tensor, alpha: Tensor, inverse: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`reference` in one launch; the sum is written where there is a residual only."""
    out, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    _snake_kernel[(triton.cdiv(x.numel(), _BLOCK),)](
        x, residual, bias, alpha, inverse, total, out, x.numel(),
        CHANNELS=x.shape[-1], BLOCK=_BLOCK, BIASED=bias is not None, ADDED=residual is not None,
        num_warps=warps(_BLOCK),
    )  # fmt: skip
    return total, out


@triton.jit
def _snake_kernel(
    x, residual, bias, alpha, inverse, total, out, count,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Block i: BLOCK numbers from i * BLOCK on."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    column = at % CHANNELS
    value = tl.load(x + at, mask=real, other=0.0)
    if BIASED:
        value += tl.load(bias + column)
    if ADDED:
        value += tl.load(residual + at, mask=real, other=0.0)
        tl.store(total + at, value, mask=real)
    sine = tl.sin(value * tl.load(alpha + column))
    tl.store(out + at, value + sine * sine * tl.load(inverse + column), mask=real)
