"""The language model run as research code runs it: what the fixed-shape engine is compared with in the same run.

One Python loop per token, caches that grow by concatenation, one call per MCTP module, the full head, and a wait for
the GPU after every token (docs/model.md; the paper measures Hugging Face code with FlashAttention-2). Keys
and values are not repeated where one row attends; several rows use a mask.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.modes import Mode
from vita_audio.engines.torch_cuda.fp8 import Matrix
from vita_audio.engines.torch_cuda.weights import LayerWeights, Weights


class _Cache:
    """Keys and values of one layer, [1, kv_heads, length, dim] each, grown by concatenation."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.keys, self.values = k, v
        else:
            self.keys, self.values = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        return self.keys, self.values


class EagerLanguageModel:
    """Batch 1, greedy with a repetition penalty over prompt and output.

    Args:
        config: sizes.
        weights: shared with the engine; merged projections are used part by part.
    """

    def __init__(self, config: LanguageModelConfig, weights: Weights) -> None:
        self._config, self._weights = config, weights
        self._device = weights.embedding.device
        self._inverse = config.rope_theta ** -(
            torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=self._device) / config.head_dim
        )

    @torch.inference_mode()
    def generate(
        self,
        prompt: Sequence[int],
        mode: Mode,
        max_tokens: int,
        repetition_penalty: float,
        limit_s: float = math.inf,
    ) -> list[int]:
        """`max_tokens` tokens after `prompt`, fewer when `limit_s` is over; no token ends it early."""
        deadline = time.perf_counter() + limit_s
        weights, modules = self._weights, self._config.mctp_modules
        ids = torch.tensor([list(prompt)], device=self._device)  # [1, length]
        caches = [_Cache() for _ in range(self._config.num_hidden_layers)]
        # H_k of every position it is known for; module k has run over as many rows as its cache is long.
        hidden = [weights.embedding.new_zeros(0, self._config.hidden_size) for _ in range(modules + 1)]
        made: list[int] = []
        for backbone, burst in mode.segments():
            for step in range(backbone + burst):
                if step < backbone:
                    x = self._backbone(ids[0, caches[0].length :], caches)
                    hidden[0] = torch.cat([hidden[0], x])
                else:
                    k = step - backbone
                    cache = caches[self._config.backbone_layers + k]
                    x = self._module(k, ids[0], hidden[k][cache.length :], cache)
                    hidden[k + 1] = torch.cat([hidden[k + 1], x])
                logits = F.linear(x[-1:], weights.head).float()  # [1, vocab]
                token = _penalised(logits, ids, repetition_penalty).argmax(-1, keepdim=True)
                ids = torch.cat([ids, token], dim=1)
                made.append(int(token.item()))  # the host waits here
                if len(made) == max_tokens or time.perf_counter() > deadline:
                    return made
        raise AssertionError("a mode never ends")

    def _backbone(self, tokens: Tensor, caches: Sequence[_Cache]) -> Tensor:
        x = F.embedding(tokens, self._weights.embedding)
        for layer, cache in zip(self._weights.layers, caches, strict=False):
            x = self._layer(x, layer, cache)
        return self._norm(x, self._weights.norm)

    def _module(self, k: int, ids: Tensor, hidden: Tensor, cache: _Cache) -> Tensor:
        w, first = self._weights.modules[k], cache.length + k + 1
        embedded = F.embedding(ids[first : first + len(hidden)], self._weights.embedding)
        both = torch.cat([self._norm(embedded, w.embed_norm), self._norm(hidden, w.hidden_norm)], dim=-1)
        return self._norm(self._layer(F.linear(both, _dense(w.projection)), w.layer, cache), self._weights.norm)

    def _layer(self, x: Tensor, w: LayerWeights, cache: _Cache) -> Tensor:
        c = self._config
        past, rows, group = cache.length, len(x), c.num_attention_heads // c.num_key_value_heads
        sizes = [heads * c.head_dim for heads in (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)]
        normed = self._norm(x, w.input_norm)
        q, k, v = (
            F.linear(normed, weight, bias).view(1, rows, -1, c.head_dim).transpose(1, 2)
            for weight, bias in zip(_dense(w.qkv).split(sizes), w.qkv_bias.split(sizes), strict=True)
        )
        angle = torch.arange(past, past + rows, device=x.device)[:, None].float() * self._inverse
        cos, sin = (torch.cat([part, part], dim=-1).to(x.dtype) for part in (angle.cos(), angle.sin()))
        q, k = (part * cos + _half_turned(part) * sin for part in (q, k))
        k, v = cache.update(k, v)
        mask = None
        if rows > 1:
            mask = torch.ones(rows, past + rows, dtype=torch.bool, device=x.device).tril(past)
            k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=mask is None)
        x = x + F.linear(out.transpose(1, 2).reshape(rows, -1), _dense(w.output))
        gate, up = _dense(w.gate_up).chunk(2)
        normed = self._norm(x, w.post_norm)
        return x + F.linear(F.silu(F.linear(normed, gate)) * F.linear(normed, up), _dense(w.down))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm in separate steps, in float32, as research code has it."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._config.rms_norm_eps)
        return weight * wide.to(x.dtype)


def _dense(matrix: Matrix) -> Tensor:
    assert isinstance(matrix, Tensor), "the baseline runs over weights that are not FP8"
    return matrix


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _penalised(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    picked = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(picked < 0, picked * penalty, picked / penalty))
