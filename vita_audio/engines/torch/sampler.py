"""One token for each row of logits, on whatever device they are: the sampler of every engine that runs on PyTorch.

Order of Hugging Face's processors: repetition penalty, temperature, top-k, top-p; then the inverse of the cumulative
distribution at a uniform number that depends on seed and token index alone (`engines/sampling.py`). The host never
waits and every shape is known to it, so a CUDA graph can hold all of it. A row draws the same in any company.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vita_audio.engines.interface import Sampling

#: Candidates that are sorted for requests with a top-k of at most this; others sort the whole vocabulary.
NARROW = 64
BANNED_LOGIT = torch.finfo(torch.float32).min / 4
_LAST_ID = 2**31 - 1


class SamplingTable(NamedTuple):
    """Sampling parameters, one row each: of all slots, or of the streams of a call."""

    penalty: Tensor  # float32 [slots]
    inv_temperature: Tensor  # float32, 1 where greedy
    top_p: Tensor  # float32
    top_k: Tensor  # int64, the vocabulary's size where off
    greedy: Tensor  # bool
    seed: Tensor  # int64, the bits of the unsigned seed

    @classmethod
    def create(cls, slots: int, device: torch.device) -> SamplingTable:
        penalty, inv_temperature, top_p = (torch.ones(slots, device=device) for _ in range(3))
        top_k = torch.ones(slots, dtype=torch.int64, device=device)
        greedy = torch.ones(slots, dtype=torch.bool, device=device)
        return cls(penalty, inv_temperature, top_p, top_k, greedy, torch.zeros_like(top_k))

    def put(self, slot: int, sampling: Sampling, vocab_size: int) -> None:
        s = sampling
        top_k = min(s.top_k or vocab_size, vocab_size)
        seed = s.seed - 2**64 if s.seed >= 2**63 else s.seed
        values = (s.repetition_penalty, 1.0 / (s.temperature or 1.0), s.top_p, top_k, s.greedy, seed)
        for column, value in zip(self, values, strict=True):
            column[slot] = value

    def rows(self, slots: Tensor) -> SamplingTable:
        """The rows of some slots: each [streams]."""
        return SamplingTable(*(column.index_select(0, slots) for column in self))


def candidates(sampling: Sampling, vocab_size: int) -> int:
    """How many of the largest logits a request needs sorted: 1, NARROW or all; few values, since each is a program."""
    if sampling.greedy:
        return 1
    return min(NARROW, vocab_size) if 0 < sampling.top_k <= NARROW else vocab_size


def width_of(rows: SamplingTable, ids: int) -> int:
    """The most candidates that any of some rows needs; on a device all ids, as the host does not wait for it."""
    if rows.greedy.device.type != "cpu":
        return ids
    most = int(rows.top_k.masked_fill(rows.greedy, 1).max())
    return 1 if most == 1 else min(NARROW if most <= NARROW else ids, ids)


def draw(logits: Tensor, seen: Tensor, banned: Tensor, table: SamplingTable, uniform: Tensor, width: int) -> Tensor:
    """One token for each row, every row sorted unless all are greedy: shapes do not depend on who samples.

    Args:
        logits: float32 [streams, ids].
        seen: bool [streams, ids], ids of prompt and output so far.
        banned: bool [ids], ids that may not come out.
        table: `SamplingTable.rows`.
        uniform: float32 [streams] in [0, 1).
        width: candidates looked at, at least what every row's `candidates` says.

    Returns:
        int64 [streams].
    """
    logits = penalise(logits, seen, banned, table.penalty)
    greedy = logits.argmax(1)
    if width == 1:
        return greedy
    how = table.inv_temperature, table.top_k, table.top_p, uniform
    drawn = draw_candidates(logits, *how, min(width, NARROW))
    if width > NARROW:
        # A sum over more candidates may be rounded differently. So a row with a small top-k is drawn from as many
        # candidates as ever, whatever the rows beside it ask for.
        drawn = torch.where(table.top_k > NARROW, draw_candidates(logits, *how, width), drawn)
    return torch.where(table.greedy, greedy, drawn)


def draw_some(
    logits: Tensor, seen: Tensor, banned: Tensor, rows: Mapping[str, Tensor], uniform: Tensor, width: int
) -> Tensor:
    """As `draw`, but only rows that sample are sorted: the host gives their number, and none at all cost nothing.

    Args:
        rows: `sampled_rows` int32 [sampled]: which rows sample; `token_rows` int32 [streams]: b where row b takes its
            best id, streams + i where it is `sampled_rows[i]`; `penalty` float32 [streams]; `inv_temp` and `top_p`
            float32 [sampled]; `top_k` int32 [sampled].
        uniform: float32 [sampled].

    Returns:
        int64 [streams].
    """
    logits = penalise(logits, seen, banned, rows["penalty"])
    best, sampled = logits.argmax(1), rows["sampled_rows"]
    if not len(sampled):
        return best
    chosen = logits.index_select(0, sampled)
    drawn = draw_candidates(chosen, rows["inv_temp"], rows["top_k"], rows["top_p"], uniform, width)
    return torch.cat([best, drawn]).index_select(0, rows["token_rows"])


def penalise(logits: Tensor, seen: Tensor, banned: Tensor, penalty: Tensor) -> Tensor:
    """Logits [streams, ids] with banned ids out of reach, and the repetition penalty on ids seen."""
    logits, penalty = logits.masked_fill(banned, BANNED_LOGIT), penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def sort_keys(logits: Tensor) -> Tensor:
    """int64, all different in a row of float32 logits [rows, ids]: larger for a larger logit, then for a smaller id."""
    bits = (logits + 0.0).view(torch.int32)  # there is one zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LAST_ID - torch.arange(logits.shape[1], device=logits.device))


def draw_candidates(
    logits: Tensor, inv_temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor, width: int
) -> Tensor:
    """Draw from the `width` largest of penalised logits [rows, ids]; everything else [rows] -> ids int64 [rows].

    Of equal logits, which bfloat16 often makes, the smaller id comes first, as `argmax` and ONNX's TopK have it.
    """
    width = min(width, logits.shape[1])
    ids = _LAST_ID - (sort_keys(logits).topk(width).values & _LAST_ID)
    values = logits.gather(1, ids)
    beyond = torch.arange(width, device=logits.device) >= top_k[:, None]
    # In float64: of many unlikely candidates, the rounding of a sum in float32 would choose.
    p = (values * inv_temperature[:, None]).masked_fill(beyond, -torch.inf).double().softmax(1)
    p = torch.where(p.cumsum(1) - p < top_p[:, None], p, 0.0)
    chosen = (p.cumsum(1) <= uniform[:, None].double() * p.sum(1, keepdim=True)).sum(1, keepdim=True)
    # A draw just below 1 can pass every candidate by rounding: the last one with any mass is meant. Rows that no stream
    # reads (padding, warm-up) may be NaN and have no mass at all: they must still index what is there.
    last = ((p > 0).sum(1, keepdim=True) - 1).clamp(min=0)
    return ids.gather(1, torch.minimum(chosen, last))[:, 0]
