"""The uniform numbers of `engines/sampling.py`, made on the device from seed and token index.

Philox 4x64 with ten rounds, as NumPy has it: the key is the seed, and a counter step makes four words of 64 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vita_audio.engines.torch_cuda.kernels.language import tl, triton

_MULTIPLY_0, _MULTIPLY_1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_0, _KEY_1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_LOW = 0xFFFFFFFF


def reference(seed: Tensor, index: Tensor) -> Tensor:
    """`sampling.uniforms` of each pair.

    Args:
        seed: int64, the bits of the unsigned seed.
        index: int64 of the same shape, at least 0.

    Returns:
        float32 in [0, 1), multiples of 2^-24.
    """
    zero = torch.zeros_like(index)
    c0, c1, c2, c3, k0, k1 = index // 4 + 1, zero, zero, zero, seed, zero
    for _ in range(10):  # 64-bit sums and products wrap
        high_0, high_1 = _high(c0, _MULTIPLY_0), _high(c2, _MULTIPLY_1)
        low_0, low_1 = c0 * _signed(_MULTIPLY_0), c2 * _signed(_MULTIPLY_1)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = k0 + _signed(_KEY_0), k1 + _signed(_KEY_1)
    word = torch.stack((c0, c1, c2, c3), dim=-1).gather(-1, (index % 4)[..., None])[..., 0]
    return ((word >> 40) & 0xFFFFFF).float() * 2.0**-24


def _signed(value: int) -> int:
    """The int64 with these 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def _high(x: Tensor, y: int) -> Tensor:
    """The upper 64 bits of the unsigned product, in halves of 32 bits."""
    x_low, x_high, y_low, y_high = x & _LOW, (x >> 32) & _LOW, y & _LOW, y >> 32
    middle = x_high * y_low + ((x_low * y_low >> 32) & _LOW)
    other = x_low * y_high + (middle & _LOW)
    return x_high * y_high + ((middle >> 32) & _LOW) + ((other >> 32) & _LOW)


@triton.jit
def uniform(seed, index):
    """As the reference, of one pair: int64, int64 -> float32."""
    c0 = (index // 4 + 1).to(tl.uint64)
    c1, c2, c3, k1 = c0 * 0, c0 * 0, c0 * 0, c0 * 0
    k0 = seed.to(tl.uint64, bitcast=True)
    for _ in tl.static_range(10):
        high_0, high_1 = tl.umulhi(c0, 0xD2E7470EE14C6C93), tl.umulhi(c2, 0xCA5A826395121157)
        low_0, low_1 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0 += 0x9E3779B97F4A7C15
        k1 += 0xBB67AE8584CAA73B
    place = index % 4
    word = tl.where(place == 0, c0, tl.where(place == 1, c1, tl.where(place == 2, c2, c3)))
    return (word >> 40).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
