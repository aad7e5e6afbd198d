"""Sampling on the device, as `torch_language_model` does it: penalty, temperature, top-k, top-p, one draw."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vita_audio.engines.interface import Sampling

#: Candidates that are sorted for requests with a top-k of at most this; others sort the whole vocabulary.
NARROW = 64
BANNED_LOGIT = torch.finfo(torch.float32).min / 4


class SamplingTable(NamedTuple):
    """Sampling parameters, one row each: of all slots, or of the streams of a call."""

    penalty: Tensor  # float32 [slots]
    temperature: Tensor  # float32, 1 where greedy
    top_p: Tensor  # float32
    top_k: Tensor  # int64, the vocabulary's size where off
    greedy: Tensor  # bool

    @classmethod
    def create(cls, slots: int, device: torch.device) -> SamplingTable:
        penalty, temperature, top_p = (torch.ones(slots, device=device) for _ in range(3))
        top_k = torch.ones(slots, dtype=torch.int64, device=device)
        return cls(penalty, temperature, top_p, top_k, torch.ones(slots, dtype=torch.bool, device=device))

    def put(self, slot: int, sampling: Sampling, vocab_size: int) -> None:
        top_k = min(sampling.top_k or vocab_size, vocab_size)
        values = (sampling.repetition_penalty, sampling.temperature or 1.0, sampling.top_p, top_k, sampling.greedy)
        for column, value in zip(self, values, strict=True):
            column[slot] = value

    def rows(self, slots: Tensor) -> SamplingTable:
        """The rows of some slots, as columns that broadcast: each [streams, 1]."""
        return SamplingTable(*(column.index_select(0, slots)[:, None] for column in self))


def candidates(sampling: Sampling, vocab_size: int) -> int:
    """How many of the largest logits a request needs sorted: 1, NARROW or all; few values, since each is a program."""
    if sampling.greedy:
        return 1
    return min(NARROW, vocab_size) if 0 < sampling.top_k <= NARROW else vocab_size


def draw(logits: Tensor, seen: Tensor, banned: Tensor, table: SamplingTable, uniform: Tensor, width: int) -> Tensor:
    """One token for each row.

    Args:
        logits: float32 [streams, ids].
        seen: bool [streams, ids], ids of prompt and output so far.
        banned: bool [ids], ids that may not come out.
        table: `SamplingTable.rows`.
        uniform: float32 [streams, 1] in [0, 1).
        width: candidates looked at, at least what every row's `candidates` says.

    Returns:
        int64 [streams].
    """
    logits = logits.masked_fill(banned, BANNED_LOGIT)
    penalised = torch.where(logits < 0, logits * table.penalty, logits / table.penalty)
    logits = torch.where(seen, penalised, logits)
    greedy = logits.argmax(1)
    if width == 1:
        return greedy
    width = min(width, logits.shape[1])
    values, ids = logits.topk(width, dim=1)
    beyond = torch.arange(width, device=logits.device) >= table.top_k
    p = (values / table.temperature).masked_fill(beyond, -torch.inf).softmax(1)
    p = torch.where(p.cumsum(1) - p < table.top_p, p, 0.0)
    chosen = (p.cumsum(1) <= uniform * p.sum(1, keepdim=True)).sum(1, keepdim=True)
    # A draw just below 1 can pass every candidate by rounding: the last one with any mass is meant. Rows that nobody
    # reads (padding, warm-up) may be NaN and have no mass at all: they must still index what is there.
    last = ((p > 0).sum(1, keepdim=True) - 1).clamp(min=0)
    return torch.where(table.greedy[:, 0], greedy, ids.gather(1, torch.minimum(chosen, last))[:, 0])
