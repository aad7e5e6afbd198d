"""Convolutions over rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RowConv:
    """A convolution over time of rows [B, T, in] -> [B, T', out], in the layout that tensor cores take as it is.

    Args:
        conv: its weights are copied in `dtype`.
        biased: False leaves its bias to what comes after.
    """

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d, dtype: torch.dtype, biased: bool = True) -> None:
        self._weight = conv.weight.unsqueeze(2).to(dtype).contiguous(memory_format=torch.channels_last)
        self._bias = conv.bias.to(dtype) if biased and conv.bias is not None else None
        self._stride, self._padding = (1, conv.stride[0]), (0, int(conv.padding[0]))
        self._dilation = (1, conv.dilation[0])
        self._transposed = isinstance(conv, nn.ConvTranspose1d)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(2)  # [B, in, 1, T], its numbers where they were
        if self._transposed:
            made = F.conv_transpose2d(x, self._weight, self._bias, self._stride, self._padding)
        else:
            made = F.conv2d(x, self._weight, self._bias, self._stride, self._padding, self._dilation)
        return made.squeeze(2).transpose(1, 2).contiguous()
