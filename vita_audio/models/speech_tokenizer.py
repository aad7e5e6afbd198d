"""The speech tokenizer: a WhisperVQ encoder that turns log-mel features into audio token ids (docs/audio.md 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.checkpoint.configs import SpeechTokenizerConfig


class CausalConv(nn.Conv1d):
    """Convolution over time that sees only the present and the past: [B, in, T] -> [B, out, ceil(T / stride)]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class SelfAttention(nn.Module):
    """Multi-head attention as in Whisper: scaled queries, no key bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """x [B, T, width]; allowed, bool [B, 1, T, T], True where a query (row) may see a key."""
        q, k, v = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, head_dim]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: attention, then a GELU feed-forward."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn = SelfAttention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), allowed)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class SpeechTokenizer(nn.Module):
    """WhisperVQ encoder up to its quantizer. State-dict keys are those of the released `model.safetensors`."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width, positions = config.d_model, config.max_source_positions
        self.conv1 = CausalConv(config.num_mel_bins, width, 3)
        self.conv2 = CausalConv(width, width, 3, stride=2)
        self.embed_positions = nn.Embedding(positions, width)
        self.embed_positions2 = nn.Embedding(positions // config.pooling_kernel_size, width)  # stored, never read here
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)

    def forward(self, features: Tensor, valid_frames: Tensor) -> Tensor:
        """Token ids of one piece of speech.

        Args:
            features: [B, mels, frames], frames even and at most 2 x max_source_positions.
            valid_frames: int64 [B], frames that hold speech; the rest is padding, which no position attends to.

        Returns:
            int64 [B, ceil(frames / frames_per_token)]; those from ceil(valid_frames / frames_per_token) on are padding.
        """
        return self.quantize(self.encode(features, valid_frames))

    def encode(self, features: Tensor, valid_frames: Tensor) -> Tensor:
        """Pooled encoder states, one for each token: [B, ceil(frames / frames_per_token), d_model]."""
        x = F.gelu(self.conv1(features))
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # [B, frames / 2, d_model]
        x = x + self.embed_positions.weight[: x.shape[1]]
        allowed = self._allowed(x.shape[1], valid_frames)
        for layer in self.layers:
            x = layer(x, allowed)
        kernel = self.config.pooling_kernel_size
        x = F.pad(x.transpose(1, 2), (0, -x.shape[1] % kernel))  # the mean of the last token may include zeros
        return F.avg_pool1d(x, kernel).transpose(1, 2)

    def quantize(self, states: Tensor) -> Tensor:
        """Nearest code (Euclidean) of each state: [B, tokens, d_model] -> int64 [B, tokens]."""
        codes = self.codebook.weight
        # ||x||^2 is the same for every code and cannot change the nearest one.
        return (codes.pow(2).sum(1) - 2 * (states @ codes.T)).argmin(-1)

    def _allowed(self, positions: int, valid_frames: Tensor) -> Tensor:
        """Block-causal mask [B, 1, positions, positions]: a position sees its own block, all before it, no padding."""
        block = self.config.quantize_causal_block_size
        index = torch.arange(positions, device=valid_frames.device)
        block_end = (index // block + 1) * block  # first position of the next block
        speech = index < (valid_frames[:, None] + 1) // 2  # [B, positions]
        return ((index < block_end[:, None]) & speech[:, None, :])[:, None]
