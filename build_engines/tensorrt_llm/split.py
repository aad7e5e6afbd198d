"""Cutting weights into the shares of a tensor-parallel group, and joining them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from build_engines.tensorrt_llm.layout import Split
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """Shares of `size` ranks. Tensors are weights [out, in], biases [out], or scales laid out like either."""

    size: int
    config: LanguageModelConfig

    @property
    def kv_heads(self) -> int:
        """KV heads of one rank; ranks beyond the number of KV heads hold repeated ones."""
        return max(1, self.config.num_key_value_heads // self.size)

    def check(self) -> None:
        """Raise EngineError, naming every size the ranks do not divide."""
        if self.size < 1:
            raise EngineError(f"--tp: {self.size} is not valid: at least 1 (tensor-parallel GPUs)")
        if sizes := self._indivisible():
            fitting = [str(n) for n in range(1, self.size) if not TensorParallel(n, self.config)._indivisible()]
            raise EngineError(f"--tp: {self.size} does not divide {', '.join(sizes)}; choose {' or '.join(fitting)}")

    def _indivisible(self) -> list[str]:
        config = self.config
        whole = ("num_attention_heads", "hidden_size", "intermediate_size")
        sizes = [f"{name} {getattr(config, name)}" for name in whole if getattr(config, name) % self.size]
        if config.num_key_value_heads % self.size and self.size % config.num_key_value_heads:
            sizes.append(f"num_key_value_heads {config.num_key_value_heads}")
        return sizes

    def split(self, rule: Split, sources: Sequence[Tensor]) -> list[Tensor]:
        """Released tensors, stacked by the rule -> the share of each rank."""
        if rule is Split.HEADS:
            q, k, v = sources  # each is split first: a rank holds its own q, k and v in one run
            shares = zip(q.chunk(self.size), self._kv_shares(k), self._kv_shares(v), strict=True)
            return [torch.cat(parts) for parts in shares]
        (source,) = sources
        if rule is Split.REPLICATED:
            return [source] * self.size
        if rule is Split.COLUMNS:
            return list(source.chunk(self.size, dim=-1))
        if rule is Split.VOCABULARY and (missing := -len(source) % self.size):
            source = torch.cat([source, source.new_zeros(missing, *source.shape[1:])])
        return list(source.chunk(self.size))

    def merge(self, rule: Split, shares: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of `split`, but for the zero rows below a vocabulary.

        Raises:
            EngineError: copies of one tensor differ between ranks.
        """
        if rule is Split.HEADS:
            rows = self.config.num_attention_heads // self.size * self.config.head_dim
            kv_rows = self.kv_heads * self.config.head_dim
            q, k, v = zip(*(share.split([rows, kv_rows, kv_rows]) for share in shares), strict=True)
            return [torch.cat(q), self._kv_merge(k), self._kv_merge(v)]
        if rule is Split.REPLICATED:
            return [_same(shares)]
        return [torch.cat(list(shares), dim=-1 if rule is Split.COLUMNS else 0)]

    def _kv_shares(self, tensor: Tensor) -> list[Tensor]:
        heads = self.config.num_key_value_heads
        copies = max(1, self.size // heads)  # ranks that hold the same head
        return [share for share in tensor.chunk(min(self.size, heads)) for _ in range(copies)]

    def _kv_merge(self, shares: Sequence[Tensor]) -> Tensor:
        copies = max(1, self.size // self.config.num_key_value_heads)
        return torch.cat([_same(shares[first : first + copies]) for first in range(0, self.size, copies)])


def _same(copies: Sequence[Tensor]) -> Tensor:
    if not all(torch.equal(copies[0], copy) for copy in copies[1:]):
        raise EngineError("ranks hold different copies of one tensor; convert the checkpoint again")
    return copies[0]
