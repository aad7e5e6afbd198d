"""The VITA-Audio language model in PyTorch: a Qwen2 backbone and K MCTP modules, with the released checkpoint keys.

Source: docs/model.md; paper section 3.2 (Multiple Cross-modal Token Prediction). Rows of several streams may
be packed along one axis: everything but attention works row by row, and attention is a function the caller passes in
(training: causal over a sequence; an engine: against its caches).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vita_audio.checkpoint.configs import LanguageModelConfig

#: (q [rows, heads, dim], k and v [rows, kv_heads, dim], all rotated) -> [rows, heads, dim]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, head_dim / 2] of the rotary embedding at integer `positions` [rows]."""
    inverse = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim)
    angle = positions[:, None].float() * inverse
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotary embedding of x [rows, heads, dim] by cos, sin [rows, dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # [rows, heads, dim]
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # [rows, kv_heads, dim]
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return self.o_proj(attend(rotate(q, cos, sin), rotate(k, cos, sin), v).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, all decoder layers (backbone first, then one per MCTP module) and the shared final norm."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LanguageModel(nn.Module):
    """Backbone + MCTP. `load_state_dict` takes a released checkpoint as it is.

    All methods work on packed rows [rows, ...]: `positions` [rows] are cache indices within each row's own stream.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        modules, hidden = config.mctp_modules, config.hidden_size
        self.mtp_projs = nn.ModuleList(nn.Linear(2 * hidden, hidden, bias=False) for _ in range(modules))
        self.mtp_embed_norms = nn.ModuleList(RMSNorm(hidden, config.rms_norm_eps) for _ in range(modules))
        self.mtp_hidden_norms = nn.ModuleList(RMSNorm(hidden, config.rms_norm_eps) for _ in range(modules))
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_table(positions, self.config.head_dim, self.config.rope_theta)

    def backbone(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Callable[[int], Attend],
        embedded: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """tokens [rows] -> H0 [rows, hidden], the output of the final norm. `attend(layer)` attends in that layer.

        `embedded`: numbers [n] of rows of a Plus model, and what stands there in place of the embeddings of the ids
        [n, hidden]. Modules of MCTP read the ids even there (docs/plus.md).
        """
        cos, sin = self.rotary(positions)
        x = self.model.embed_tokens(tokens)
        if embedded is not None:
            x = x.index_copy(0, *embedded)
        for index in range(self.config.backbone_layers):
            x = self.model.layers[index](x, cos, sin, attend(index))
        return self.model.norm(x)

    def mctp(self, module: int, tokens: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """One MCTP module over rows j: tokens [rows] are token j + module + 1, hidden [rows, hidden] is H_module[j].

        Returns H_(module + 1) [rows, hidden]. Rotary positions are the cache index j: the reference adds module + 1
        to every row, which relative rotary attention cannot see (docs/model.md).
        """
        embedded = self.mtp_embed_norms[module](self.model.embed_tokens(tokens))
        x = self.mtp_projs[module](torch.cat([embedded, self.mtp_hidden_norms[module](hidden)], dim=-1))
        cos, sin = self.rotary(positions)
        x = self.model.layers[self.config.backbone_layers + module](x, cos, sin, attend)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> logits [rows, vocab]."""
        return self.lm_head(hidden)
