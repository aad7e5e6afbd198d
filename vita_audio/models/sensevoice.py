"""SenseVoice's encoder and the projector of the Plus variant: features -> prompt embeddings (docs/plus.md).

The networks run in the data type of their weights: float32, or bfloat16 as released, where every step of the position
table is rounded too. Norms are computed in float32 in both.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.checkpoint.configs import SenseVoiceConfig

#: Rows of `embed` put before the features: language "auto", event, emotion, without inverse text normalisation.
QUERY_ROWS = (0, 1, 2, 15)
EMBED_ROWS = 16


def sinusoids(rows: int, width: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Position table [rows, width], [sin | cos], of the positions 1, 2, ...; every step rounded to `dtype`.

    In bfloat16 that is far from the exact table: off by up to 0.15 at position 64, by more than 1 from 257 on.
    """
    half = width // 2
    step = torch.tensor(10_000.0, dtype=dtype, device=device).log() / (half - 1)
    rates = (torch.arange(half, device=device).to(dtype) * -step).exp()
    angles = torch.arange(1, rows + 1, device=device).to(dtype)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class FloatLayerNorm(nn.LayerNorm):
    """Layer norm in float32, whatever the data type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps).to(
            x.dtype
        )


class SanmAttention(nn.Module):
    """Attention over the whole clip, plus a memory: a convolution over time of each channel of the values."""

    def __init__(self, config: SenseVoiceConfig, input_size: int) -> None:
        super().__init__()
        width = config.output_size
        self.heads, self.pads = config.attention_heads, config.memory_pads
        self.linear_q_k_v = nn.Linear(input_size, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, config.kernel_size, groups=width, bias=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, T, input_size]; valid, bool [B, T], False where a row is padding -> [B, T, width]."""
        q, k, v = self.linear_q_k_v(x).chunk(3, dim=2)
        values = v * valid[:, :, None]
        memory = self.fsmn_block(F.pad(values.transpose(1, 2), self.pads)).transpose(1, 2) + values
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))  # [B, heads, T, d]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
        return self.linear_out(mixed.transpose(1, 2).flatten(2)) + memory


class FeedForward(nn.Module):
    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.output_size, config.linear_units)
        self.w_2 = nn.Linear(config.linear_units, config.output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.relu(self.w_1(x)))


class EncoderLayer(nn.Module):
    """Pre-norm layer. One that changes the width has no residual round its attention."""

    def __init__(self, config: SenseVoiceConfig, input_size: int) -> None:
        super().__init__()
        self.residual = input_size == config.output_size
        self.self_attn = SanmAttention(config, input_size)
        self.feed_forward = FeedForward(config)
        self.norm1 = FloatLayerNorm(input_size)
        self.norm2 = FloatLayerNorm(config.output_size)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        attended = self.self_attn(self.norm1(x), valid)
        x = x + attended if self.residual else attended
        return x + self.feed_forward(self.norm2(x))


class Encoder(nn.Module):
    """`encoders0` (one layer, which changes the width), `encoders`, a norm, `tp_encoders`, a norm."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        width = config.output_size
        self.encoders0 = nn.ModuleList([EncoderLayer(config, config.input_size)])
        self.encoders = nn.ModuleList(EncoderLayer(config, width) for _ in range(config.num_blocks - 1))
        self.tp_encoders = nn.ModuleList(EncoderLayer(config, width) for _ in range(config.tp_blocks))
        self.after_norm = FloatLayerNorm(width)
        self.tp_norm = FloatLayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, T, input_size], scaled and with positions; valid, bool [B, T] -> [B, T, width]."""
        for layer in (*self.encoders0, *self.encoders):
            x = layer(x, valid)
        x = self.after_norm(x)
        for layer in self.tp_encoders:
            x = layer(x, valid)
        return self.tp_norm(x)


class SenseVoiceTower(nn.Module):
    """The encoder with its queries. Keys are those below `model.audio_model.model.`, without the unused CTC head."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(config.output_size)
        self.embed = nn.Embedding(EMBED_ROWS, config.input_size)
        self.encoder = Encoder(config)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """As `SenseVoice.forward` -> states [B, rows + 4, output_size]."""
        queries = self.embed.weight[list(QUERY_ROWS)].expand(len(features), -1, -1)
        x = torch.cat((queries, features.to(queries.dtype)), dim=1) * self.scale
        x = x + sinusoids(x.shape[1], x.shape[2], x.dtype, x.device)
        index = torch.arange(x.shape[1], device=lengths.device)
        return self.encoder(x, index < lengths[:, None] + len(QUERY_ROWS))


class ResamplerProjector(nn.Module):
    """Encoder states to the width of the language model, a row each. Keys: those below `model.audio_projection.`."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        width = config.embedding_size
        self.pre_proj_layernorm = FloatLayerNorm(config.output_size)
        self.mlp = nn.Sequential(
            nn.Linear(config.output_size, width, bias=False), nn.GELU(), nn.Linear(width, width, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.pre_proj_layernorm(x))


class SenseVoice(nn.Module):
    """`tower` and `projector`; in a checkpoint their keys begin with `model.audio_model.model.` and
    `model.audio_projection.`."""

    def __init__(self, config: SenseVoiceConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = SenseVoiceTower(config)
        self.projector = ResamplerProjector(config)

    def forward(self, features: Tensor, lengths: Tensor, round_features: bool = False) -> Tensor:
        """Prompt embeddings of clips.

        Args:
            features: [B, rows, input_size], normalised; clips shorter than the longest are followed by anything.
            lengths: int64 [B], rows of each clip.
            round_features: to bfloat16, as the released code does even where the weights are float32.

        Returns:
            [B, rows + 4, embedding_size]; those from lengths + 4 on are padding.
        """
        if round_features:
            features = features.bfloat16()
        return self.projector(self.tower(features, lengths))
