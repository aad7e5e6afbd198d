"""Estimator of the flow: a 1-D U-Net with transformer blocks, v = f(x, mu, t, spks, cond) (docs/audio.md 2.3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.checkpoint.configs import FlowConfig

NORM_GROUPS = 8


class ConvBlock(nn.Module):
    """Conv k3 -> GroupNorm -> Mish: [B, in, T] -> [B, out, T]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(channels_in, channels_out, 3, padding=1), nn.GroupNorm(NORM_GROUPS, channels_out), nn.Mish()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResnetBlock(nn.Module):
    """Two conv blocks with the time embedding added between them, and a 1x1 shortcut."""

    def __init__(self, channels_in: int, channels_out: int, time_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_size, channels_out))
        self.block1 = ConvBlock(channels_in, channels_out)
        self.block2 = ConvBlock(channels_out, channels_out)
        self.res_conv = nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, in, T], time [1 or B, time_size] -> [B, out, T]."""
        return self.block2(self.block1(x) + self.mlp(time)[:, :, None]) + self.res_conv(x)


class Attention(nn.Module):
    """Full (bidirectional) attention, no positions, no q/k/v bias."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_k = nn.Linear(width, heads * head_dim, bias=False)
        self.to_v = nn.Linear(width, heads * head_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_dim, width)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, head_dim]
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GeluProjection(nn.Module):
    """Linear followed by the exact GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """GELU feed-forward, four times as wide (released keys `net.0.proj` and `net.2`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GeluProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward over [B, T, width]."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_dim)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class Downsample(nn.Module):
    """Halves the frame rate: T -> ceil(T / 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles the frame rate: T -> 2T."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class TimeEmbedding(nn.Module):
    """Flow time t in [0, 1] -> [B, time_size]: sinusoids of 1000 t, then a SiLU MLP."""

    def __init__(self, sinusoids: int, time_size: int) -> None:
        super().__init__()
        self.sinusoids = sinusoids
        self.linear_1 = nn.Linear(sinusoids, time_size)
        self.linear_2 = nn.Linear(time_size, time_size)

    def forward(self, t: Tensor) -> Tensor:
        half = self.sinusoids // 2
        rates = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(10000) / (half - 1)))
        angles = 1000.0 * t[:, None] * rates
        return self.linear_2(F.silu(self.linear_1(torch.cat((angles.sin(), angles.cos()), dim=1))))


class Stage(nn.ModuleList):
    """One stage of the U-Net: a resnet block (key `0`), transformer blocks (`1`) and a resampling (`2`), if any."""

    def __init__(self, channels_in: int, width: int, config: FlowConfig, resample: nn.Module | None = None) -> None:
        blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.attention_head_dim) for _ in range(config.n_blocks)
        )
        resnet = ResnetBlock(channels_in, width, 4 * config.channels[0])
        super().__init__([resnet, blocks] if resample is None else [resnet, blocks, resample])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, in, T] -> [B, width, T], before the resampling."""
        x = self[0](x, time).transpose(1, 2)  # [B, T, width] for the transformer blocks
        for block in self[1]:  # type: ignore[attr-defined]
            x = block(x)
        return x.transpose(1, 2)

    def resample(self, x: Tensor) -> Tensor:
        return self[2](x)


class Estimator(nn.Module):
    """U-Net with one level per entry of `channels`; every level but the last halves the frame rate."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        channels, mels = config.channels, config.output_size
        last = len(channels) - 1
        self.time_mlp = TimeEmbedding(4 * mels, 4 * channels[0])
        self.down_blocks = nn.ModuleList()
        width = 4 * mels  # x, mu, speaker, condition
        for level, wanted in enumerate(channels):
            down = nn.Conv1d(wanted, wanted, 3, padding=1) if level == last else Downsample(wanted)
            self.down_blocks.append(Stage(width, wanted, config, down))
            width = wanted
        self.mid_blocks = nn.ModuleList(Stage(width, width, config) for _ in range(config.num_mid_blocks))
        self.up_blocks = nn.ModuleList()
        # Levels in reverse; the last one runs at full rate and keeps channels[0], the width of the final block.
        for level, wanted in enumerate((*channels[-2::-1], channels[0])):
            up = nn.Conv1d(wanted, wanted, 3, padding=1) if level == last else Upsample(wanted)
            self.up_blocks.append(Stage(2 * width, wanted, config, up))
            width = wanted
        self.final_block = ConvBlock(width, width)
        self.final_proj = nn.Conv1d(width, mels, 1)

    def forward(self, x: Tensor, mu: Tensor, t: Tensor, spks: Tensor, cond: Tensor) -> Tensor:
        """Velocity of the flow.

        Args:
            x, mu, cond: [B, mels, T]; windows of one batch are exactly T long, there is no padding.
            t: [1] or [B] in [0, 1].
            spks: [1] or [B], mels.

        Returns:
            [B, mels, T].
        """
        spks = spks[:, :, None].expand(x.shape[0], -1, x.shape[2])
        return self.run(torch.cat((x, mu, spks, cond), dim=1), self.time_mlp(t))

    def run(self, x: Tensor, time: Tensor) -> Tensor:
        """The U-Net proper: x [B, 4 mels, T] and the time embedding [1 or B, time_size] -> [B, mels, T]."""
        skips = []
        for stage in self.down_blocks:
            x = stage(x, time)
            skips.append(x)
            x = stage.resample(x)  # type: ignore[operator]
        for stage in self.mid_blocks:
            x = stage(x, time)
        for stage in self.up_blocks:
            skip = skips.pop()
            # Going down an odd T was rounded up; the doubled frames beyond the skip are cut.
            x = stage(torch.cat((x[:, :, : skip.shape[2]], skip), dim=1), time)
            x = stage.resample(x)  # type: ignore[operator]
        return self.final_proj(self.final_block(x))
