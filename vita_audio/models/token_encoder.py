"""Conditioning of the flow: block-causal token encoder and length regulator, tokens -> mu (docs/audio.md 2.1-2.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.checkpoint.configs import FlowConfig


def relative_positions(length: int, width: int, like: Tensor) -> Tensor:
    """Sinusoids of the distances length - 1 (far past) down to 1 - length (far future): [2 length - 1, width]."""
    distances = torch.arange(length - 1, -length, -1, device=like.device, dtype=like.dtype)
    rates = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=like.dtype) * (-math.log(10000.0) / width))
    angles = distances[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


class RelativeAttention(nn.Module):
    """Transformer-XL attention: scores from content and from the signed distance between query and key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor, blocked: Tensor) -> Tensor:
        """x [B, N, width]; positions [2N - 1, width]; blocked, bool [N, N], True where a query may not see a key."""
        length = x.shape[1]
        q = self.linear_q(x).unflatten(2, (self.heads, -1))  # [B, N, heads, d]
        k = self.linear_k(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        v = self.linear_v(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        p = self.linear_pos(positions).unflatten(1, (self.heads, -1)).transpose(0, 1)  # [heads, 2N - 1, d]
        content = (q + self.pos_bias_u).transpose(1, 2) @ k.transpose(2, 3)  # [B, heads, N, N]
        distance = (q + self.pos_bias_v).transpose(1, 2) @ p.transpose(1, 2)  # [B, heads, N, 2N - 1]
        scores = (content + self._align(distance, length)) * (x.shape[2] // self.heads) ** -0.5
        weights = scores.masked_fill(blocked, torch.finfo(scores.dtype).min).softmax(-1)
        return self.linear_out((weights @ v).transpose(1, 2).flatten(2))

    @staticmethod
    def _align(distance: Tensor, length: int) -> Tensor:
        """Column c of row i is distance length-1-c; shift row i so that column j becomes distance i - j: [.., N, N]."""
        shifted = F.pad(distance, (1, 0)).flatten(2)  # each row one column longer: rows drift by one when re-cut
        shifted = shifted[:, :, length:].unflatten(2, (length, 2 * length - 1))
        return shifted[:, :, :, :length]


class FeedForward(nn.Module):
    """SiLU feed-forward."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class EncoderLayer(nn.Module):
    """Pre-norm layer: relative attention, then the feed-forward."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width = config.encoder_output_size
        self.self_attn = RelativeAttention(width, config.encoder_heads)
        self.feed_forward = FeedForward(width, config.encoder_linear_units)
        self.norm_ff = nn.LayerNorm(width)
        self.norm_mha = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, blocked: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, blocked)
        return x + self.feed_forward(self.norm_ff(x))


class InputProjection(nn.Module):
    """Linear + LayerNorm in front of the layers (released keys `embed.out.0`, `embed.out.1`)."""

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(input_size, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class TokenEncoder(nn.Module):
    """Block-causal encoder: a token sees its own block of `block_size` tokens and everything before it.

    Nothing in it depends on absolute positions, so a window may start at any multiple of the block size.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.embed = InputProjection(config.input_size, config.encoder_output_size)
        self.encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_blocks))
        self.after_norm = nn.LayerNorm(config.encoder_output_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, input_size] -> [B, N, encoder_output_size]."""
        length, width = x.shape[1], self.after_norm.normalized_shape[0]
        index = torch.arange(length, device=x.device)
        block_end = (index // self.block_size + 1) * self.block_size
        blocked = index >= block_end[:, None]  # [N, N]
        x = self.embed(x) * math.sqrt(width)
        positions = relative_positions(length, width, x)
        for layer in self.encoders:
            x = layer(x, positions, blocked)
        return self.after_norm(x)


class LengthRegulator(nn.Module):
    """Repeats encoder states to mel frames and smooths them: [B, mels, N] -> [B, mels, F]."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        mels = config.output_size
        layers: list[nn.Module] = []
        for _ in range(config.regulator_convs):
            layers += [nn.Conv1d(mels, mels, 3, padding=1), nn.GroupNorm(1, mels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(mels, mels, 1))

    def forward(self, x: Tensor, frame_token: Tensor) -> Tensor:
        """frame_token, int64 [F], or [B, F] of each row: the position 0..N-1 whose state each frame repeats."""
        if frame_token.ndim == 2:
            return self.model(x.gather(2, frame_token[:, None].expand(-1, x.shape[1], -1)))
        return self.model(x.index_select(2, frame_token))
