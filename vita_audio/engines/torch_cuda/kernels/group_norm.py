"""What follows a convolution of the flow's estimator: its bias, GroupNorm, Mish, and a constant for each channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.engines.torch_cuda.kernels.language import power_of_two, tl, triton

#: Numbers that a block holds at once: a group of 32 channels over 512 frames, which is most windows whole.
_MOST = 16384


def reference(
    x: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, eps: float, groups: int, shift: Tensor
) -> Tensor:
    """mish(GroupNorm(x + bias)) + shift.

    Args:
        x: [B, T, channels], contiguous: a group's statistics are over its channels and all frames.
        bias, weight, offset: [channels]; the convolution's bias, the norm's scale and offset.
        shift: [channels].

    Returns:
        [B, T, channels].
    """
    normed = F.group_norm((x + bias).transpose(1, 2), groups, weight, offset, eps)
    return F.mish(normed).transpose(1, 2).contiguous() + shift


def fused(x: Tensor, bias: Tensor, weight: Tensor, offset: Tensor, eps: float, groups: int, shift: Tensor) -> Tensor:
    """`reference` in one launch, rounded once. PyTorch's own takes six there, and copies x, whose channels it wants
    outside."""
    batch, frames, channels = x.shape
    width = power_of_two(channels // groups)
    block = max(16, min(power_of_two(frames), _MOST // width))
    out = torch.empty_like(x)
    _group_norm_kernel[(groups, batch)](
        x, bias, weight, offset, shift, out, frames, eps,
        CHANNELS=channels, GROUP=channels // groups, WIDTH=width, BLOCK=block,
        num_warps=max(4, min(16, width * block // 1024)),
    )  # fmt: skip
    return out


@triton.jit
def _biased(x, bias, frame, frames, column, inside, CHANNELS: tl.constexpr):
    """Some frames of a group, float32 [BLOCK, WIDTH], zero outside; and what of them is inside."""
    real = (frame < frames)[:, None] & inside[None, :]
    at = x + frame[:, None].to(tl.int64) * CHANNELS + column[None, :]
    value = tl.load(at, mask=real, other=0.0).to(tl.float32) + bias[None, :]
    return tl.where(real, value, 0.0), real


@triton.jit(do_not_specialize=["frames"])
def _group_norm_kernel(
    x, bias, weight, offset, shift, out, frames, eps,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Block (group, window). A window longer than BLOCK frames is read three times, from the L2 cache."""
    first = tl.program_id(1).to(tl.int64) * frames * CHANNELS
    inside = tl.arange(0, WIDTH) < GROUP
    column = tl.program_id(0) * GROUP + tl.arange(0, WIDTH)
    own = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(0, frames, BLOCK):
        value, _ = _biased(x + first, own, start + tl.arange(0, BLOCK), frames, column, inside, CHANNELS)
        total += tl.sum(value, 0)
    mean = tl.sum(total, 0) / (frames * GROUP)
    squares = tl.zeros([WIDTH], tl.float32)
    for start in range(0, frames, BLOCK):
        value, real = _biased(x + first, own, start + tl.arange(0, BLOCK), frames, column, inside, CHANNELS)
        centred = tl.where(real, value - mean, 0.0)
        squares += tl.sum(centred * centred, 0)
    scale = tl.rsqrt(tl.sum(squares, 0) / (frames * GROUP) + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32) * scale
    b = tl.load(offset + column, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    for start in range(0, frames, BLOCK):
        frame = start + tl.arange(0, BLOCK)
        value, real = _biased(x + first, own, frame, frames, column, inside, CHANNELS)
        value = (value - mean) * w[None, :] + b[None, :]
        # Mish is v tanh(log(1 + e^v)) = v n / (n + 2) with n = e^v (e^v + 2); from 20 on it is v to the last bit.
        power = tl.exp(tl.minimum(value, 20.0))
        ratio = power * (power + 2.0)
        value = value * (ratio / (ratio + 2.0)) + added[None, :]
        at = out + first + frame[:, None].to(tl.int64) * CHANNELS + column[None, :]
        tl.store(at, value.to(out.dtype.element_ty), mask=real)
