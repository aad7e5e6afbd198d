"""The vocoder as a GPU runs it: `models.vocoder` in few launches. Frames are rows, [B, T, channels], throughout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.engines.torch_cuda.kernels.audio_operations import AudioOperations
from vita_audio.engines.torch_cuda.row_conv import RowConv
from vita_audio.models.vocoder import FINAL_SLOPE, MAX_MAGNITUDE, ResBlock, Snake, Vocoder


class FusedVocoder:
    """mel [B, mels, T] and source [B, 256 T] -> waveform [B, 256 T] of `Vocoder`, float32.

    Args:
        model: its weights are copied; of its other parts only the STFT is used.
        operations: reference or kernels.
    """

    def __init__(self, model: Vocoder, operations: AudioOperations) -> None:
        self._config, self._stft = model.config, model.stft
        self._before, self._after = _conv(model.conv_pre), _conv(model.conv_post)
        self._ups, self._source_downs = ([_conv(one) for one in part] for part in (model.ups, model.source_downs))
        self._source_blocks = [_ResBlock(one, operations) for one in model.source_resblocks]  # type: ignore[arg-type]
        self._blocks = [_ResBlock(one, operations) for one in model.resblocks]  # type: ignore[arg-type]

    def __call__(self, mel: Tensor, source: Tensor) -> Tensor:
        config, kernels = self._config, len(self._config.resblock_kernel_sizes)
        spectrum = self._stft(source).transpose(1, 2).contiguous()
        x = self._before(mel.transpose(1, 2).contiguous())
        for level, up in enumerate(self._ups):
            x = up(F.leaky_relu(x, config.lrelu_slope))
            if level == len(self._ups) - 1:
                x = torch.cat((x[:, 1:2], x), dim=1)  # one frame more, as the source's spectrum has (reflection)
            x = x + self._source_blocks[level](self._source_downs[level](spectrum))
            first, *others = (block(x) for block in self._blocks[level * kernels : (level + 1) * kernels])
            for one in others:
                first += one
            x = first / kernels
        magnitude, angle = self._after(F.leaky_relu(x, FINAL_SLOPE)).transpose(1, 2).chunk(2, dim=1)
        magnitude, phase = magnitude.exp().clamp(max=MAX_MAGNITUDE), angle.sin()
        spectrum = torch.cat((magnitude * phase.cos(), magnitude * phase.sin()), dim=1)
        return self._stft.inverse(spectrum).clamp(-config.audio_limit, config.audio_limit)


class _ResBlock:
    """`ResBlock`: biases and residuals are added where the next activation begins."""

    def __init__(self, block: ResBlock, operations: AudioOperations) -> None:
        self._snake = operations.snake
        self._pairs = [
            (_snake(first), _conv(conv1, biased=False), _bias(conv1), _snake(second), _conv(conv2, biased=False))
            for first, conv1, second, conv2 in zip(
                block.activations1, block.convs1, block.activations2, block.convs2, strict=True
            )
        ]
        self._biases = [_bias(conv) for conv in block.convs2]

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor | None = None
        bias: Tensor | None = None
        for (first, conv1, inner, second, conv2), own in zip(self._pairs, self._biases, strict=True):
            if made is None:
                x, active = self._snake(x, *first)
            else:
                x, active = self._snake(made, *first, bias, x)
            _, active = self._snake(conv1(active), *second, inner)
            made, bias = conv2(active), own
        assert made is not None
        assert bias is not None
        return (made + bias).add_(x)


def _snake(activation: nn.Module) -> tuple[Tensor, Tensor]:
    """alpha and 1 / alpha, [channels]."""
    assert isinstance(activation, Snake)
    alpha = activation.alpha.detach()
    return alpha, 1 / (alpha + 1e-9)


def _conv(conv: nn.Module, biased: bool = True) -> RowConv:
    assert isinstance(conv, (nn.Conv1d, nn.ConvTranspose1d))
    return RowConv(conv, torch.float32, biased)


def _bias(conv: nn.Module) -> Tensor:
    assert isinstance(conv.bias, Tensor)
    return conv.bias.detach()
