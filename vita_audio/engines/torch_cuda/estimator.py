"""The flow's estimator as a GPU runs it: `models.flow_estimator` in few launches, in one number type.

Frames are rows, [B, T, channels] throughout: as tensor cores want them in convolutions, and as attention has them.
Queries, keys and values are one product; the time embedding of every step, which no input changes, is made once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.engines.torch_cuda.kernels.audio_operations import AudioOperations
from vita_audio.engines.torch_cuda.row_conv import RowConv
from vita_audio.models.flow_estimator import NORM_GROUPS, Attention, ConvBlock, Estimator, Stage, TransformerBlock


class FusedEstimator:
    """Guided velocities of `Estimator`.

    Args:
        estimator: float32; its weights are copied in `dtype`.
        speaker: [1, mels], of every stream.
        guidance: strength g: (1 + g) v(mu, spks, cond) - g v(0, 0, 0); both in one batch.
        dtype: of weights and activations; states and velocities are float32.
        operations: reference or kernels.
    """

    def __init__(
        self, estimator: Estimator, speaker: Tensor, guidance: float, dtype: torch.dtype, operations: AudioOperations
    ) -> None:
        self._dtype, self._guidance, self._speaker = dtype, guidance, speaker
        self._time = estimator.time_mlp
        stages = [*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks]
        shifts = [stage[0].mlp[1] for stage in stages]  # type: ignore[index]
        self._shift_weight = torch.cat([shift.weight for shift in shifts])  # [all widths, time size]
        self._shift_bias = torch.cat([shift.bias for shift in shifts])
        self._widths = [shift.out_features for shift in shifts]
        self._down, self._middle, self._up = (
            [_Stage(stage, dtype, operations) for stage in part]  # type: ignore[arg-type]
            for part in (estimator.down_blocks, estimator.mid_blocks, estimator.up_blocks)
        )
        self._final = _ConvBlock(estimator.final_block, dtype, operations)
        self._no_shift = self._final.bias.new_zeros(self._final.bias.shape)
        self._projection, self._projection_bias = _pointwise(estimator.final_proj, dtype)

    def shifts(self, times: Tensor) -> Tensor:
        """What the flow times [steps] add in each resnet block: float32 [steps, all widths]."""
        return F.linear(F.mish(self._time(times)), self._shift_weight, self._shift_bias)

    def given(self, mu: Tensor, cond: Tensor) -> Tensor:
        """What all steps read, mu and cond [B, mels, T] -> [1 or 2, B, T, 3 mels]; the second half is unconditional."""
        speaker = self._speaker[:, :, None].expand_as(mu)
        rows = torch.cat((mu, speaker, cond), dim=1).transpose(1, 2).to(self._dtype)[None]
        return F.pad(rows, (0, 0, 0, 0, 0, 0, 0, 1)) if self._guidance else rows

    def velocity(self, x: Tensor, given: Tensor, shifts: Tensor) -> Tensor:
        """Guided velocity.

        Args:
            x: float32 [B, mels, T].
            given: from `given`.
            shifts: [all widths], a row of `shifts`.

        Returns:
            float32 [B, mels, T].
        """
        rows = x.transpose(1, 2).to(self._dtype).expand(len(given), -1, -1, -1)
        shift = shifts.to(self._dtype).split(self._widths)
        made = self._run(torch.cat((rows, given), dim=3).flatten(0, 1), shift).float()
        if self._guidance:
            guided, free = made.chunk(2)
            made = free.lerp(guided, 1 + self._guidance)
        return made.transpose(1, 2)

    def _run(self, x: Tensor, shifts: Sequence[Tensor]) -> Tensor:
        """The U-Net: x [B, T, 4 mels], one shift [width] for each stage -> [B, T, mels]."""
        shift, skips = iter(shifts), []
        for stage in self._down:
            x = stage(x, next(shift))
            skips.append(x)
            x = stage.resample(x)
        for stage in self._middle:
            x = stage(x, next(shift))
        for stage in self._up:
            skip = skips.pop()
            x = stage.resample(stage(torch.cat((x[:, : skip.shape[1]], skip), dim=2), next(shift)))
        return F.linear(self._final(x, self._no_shift), self._projection, self._projection_bias)


class _ConvBlock:
    """`ConvBlock`, and a constant for each channel that is added at its end."""

    def __init__(self, block: ConvBlock, dtype: torch.dtype, operations: AudioOperations) -> None:
        conv, norm, _ = block.block
        assert isinstance(conv, nn.Conv1d)
        assert isinstance(norm, nn.GroupNorm)
        self._conv = RowConv(conv, dtype, biased=False)
        self.bias, self._weight, self._offset = (one.to(dtype) for one in (conv.bias, norm.weight, norm.bias))  # type: ignore[union-attr]
        self._eps, self._norm = norm.eps, operations.group_norm

    def __call__(self, x: Tensor, shift: Tensor) -> Tensor:
        made = self._conv(x)
        return self._norm(made, self.bias, self._weight, self._offset, self._eps, NORM_GROUPS, shift)


class _Stage:
    """`Stage`: [B, T, in] -> [B, T, width], and its resampling."""

    def __init__(self, stage: Stage, dtype: torch.dtype, operations: AudioOperations) -> None:
        resnet, blocks = stage[0], stage[1]
        self._first = _ConvBlock(resnet.block1, dtype, operations)  # type: ignore[arg-type]
        self._second = _ConvBlock(resnet.block2, dtype, operations)  # type: ignore[arg-type]
        self._shortcut, self._shortcut_bias = _pointwise(resnet.res_conv, dtype)  # type: ignore[arg-type]
        self._blocks = [_Block(block, dtype) for block in blocks]  # type: ignore[attr-defined,union-attr]
        self._norm = operations.layer_norm
        self.resample = RowConv(_resampling(stage[2]), dtype) if len(stage) > 2 else nn.Identity()

    def __call__(self, x: Tensor, shift: Tensor) -> Tensor:
        made = self._second(self._first(x, shift), self._shortcut_bias)
        made.flatten(0, 1).addmm_(x.flatten(0, 1), self._shortcut.t())
        x, made = made, None  # type: ignore[assignment]
        for block in self._blocks:
            x, normed = self._norm(x, *block.norm1, made)
            x, normed = self._norm(x, *block.norm3, block.attend(normed))
            made = block.feed(normed)
        return x if made is None else x + made


class _Block:
    """`TransformerBlock` between its norms."""

    def __init__(self, block: TransformerBlock, dtype: torch.dtype) -> None:
        attention: Attention = block.attn1
        self._heads = attention.heads
        self._qkv = torch.cat([one.weight for one in (attention.to_q, attention.to_k, attention.to_v)]).to(dtype)
        self._out = _parameters(attention.to_out[0], dtype)  # type: ignore[arg-type]
        gelu, _, back = block.ff.net
        self._up, self._back = _parameters(gelu.proj, dtype), _parameters(back, dtype)  # type: ignore[arg-type]
        self.norm1, self.norm3 = ((*_parameters(one, dtype), one.eps) for one in (block.norm1, block.norm3))

    def attend(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]. No mask: windows of a batch are equally long."""
        qkv = F.linear(x, self._qkv).unflatten(2, (3, self._heads, -1))  # [B, T, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), *self._out)

    def feed(self, x: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, *self._up)), *self._back)


def _resampling(module: nn.Module) -> nn.Conv1d | nn.ConvTranspose1d:
    conv = module if isinstance(module, nn.Conv1d) else module.conv
    assert isinstance(conv, (nn.Conv1d, nn.ConvTranspose1d))
    return conv


def _pointwise(conv: nn.Conv1d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a convolution of one frame."""
    assert conv.bias is not None
    return conv.weight[:, :, 0].to(dtype), conv.bias.to(dtype)


def _parameters(layer: nn.Linear | nn.LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return layer.weight.to(dtype), layer.bias.to(dtype)
