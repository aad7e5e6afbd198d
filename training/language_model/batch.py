"""Several samples packed along one axis of rows: positions start again at each, attention stays inside each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

#: Rows without a loss, as in Hugging Face datasets.
NO_LABEL = -100
_FLASH = (torch.float16, torch.bfloat16)  # what flash attention computes in


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids of one conversation, int32 [n], and which of them the model must predict, bool [n]."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples.

    Attributes:
        tokens, labels, positions: int64 [rows]; labels[i] is token i where it counts, else NO_LABEL.
        last: int64 [rows], row of the last token of each row's own sample.
        groups: row indices int64 [samples, longest], samples of like length together; padded with the last row.
        unpack: int64 [rows], where each row went in all groups flattened and joined.
        bounds: int32 [samples + 1], the first row of each sample, and the number of rows.
        longest: tokens of the longest sample.
        targets: `targets_of` each level where they are known already.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    last: Tensor
    groups: list[Tensor]
    unpack: Tensor
    bounds: Tensor
    longest: int
    targets: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def rows(self) -> int:
        return len(self.tokens)

    @property
    def trained_tokens(self) -> int:
        """Tokens that the backbone must predict (the first of a sample is never one)."""
        return int((self.labels_of(0) != NO_LABEL).sum())

    def to(self, device: torch.device, levels: int) -> Batch:
        """The batch on another device, with the targets of so many levels: their sizes are known to the CPU alone."""
        if device.type == "cpu":
            return self
        targets = [self.targets_of(level) for level in range(levels)]
        return Batch(
            self.tokens.to(device),
            self.labels.to(device),
            self.positions.to(device),
            self.last.to(device),
            [group.to(device) for group in self.groups],
            self.unpack.to(device),
            self.bounds.to(device),
            self.longest,
            tuple((rows.to(device), wanted.to(device)) for rows, wanted in targets),
        )

    def targets_of(self, level: int) -> tuple[Tensor, Tensor]:
        """The rows that have a label at a level, and these labels: int64 [n] each."""
        if self.targets:
            return self.targets[level]
        labels = self.labels_of(level)
        rows = (labels != NO_LABEL).nonzero().squeeze(1)
        return rows, labels[rows]

    def labels_of(self, level: int) -> Tensor:
        """What level 0 (backbone) or 1 .. K (MCTP level - 1) must predict at each row, else NO_LABEL: int64 [rows].

        Row i of the backbone predicts token i + 1, row i of MCTP k token i + k + 2 of the same sample.
        """
        target = torch.arange(self.rows, device=self.tokens.device) + level + 1
        return torch.where(target <= self.last, self.labels[target.clamp(max=self.rows - 1)], NO_LABEL)

    def tokens_of(self, module: int) -> Tensor:
        """Token i + module + 1 of each row, which MCTP `module` embeds: int64 [rows].

        The last rows of a sample have no such token. They get its last one; no row that counts can see them.
        """
        index = torch.arange(self.rows, device=self.tokens.device) + module + 1
        return self.tokens[torch.minimum(index, self.last)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention inside each sample: q [rows, heads, dim], k and v [rows, kv_heads, dim] -> as q."""
        repeat = q.shape[1] // k.shape[1]
        kind, on_cpu = q.dtype, q.device.type == "cpu"
        if not on_cpu and v.dtype in _FLASH:
            return self._attend_flash(q.to(v.dtype), k.to(v.dtype), v, repeat).to(kind)
        if on_cpu:  # where bfloat16 attention is several times as slow backward
            q, k, v = q.float(), k.float(), v.float()
        outputs = []
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            for group in self.groups:
                shape = group.shape
                parts = (x.index_select(0, group.flatten()).unflatten(0, shape).transpose(1, 2) for x in (q, k, v))
                q1, k1, v1 = parts  # [samples, heads, longest, dim]
                if repeat > 1:
                    k1, v1 = k1.repeat_interleave(repeat, 1), v1.repeat_interleave(repeat, 1)
                # Padding comes last, so a causal mask alone hides it from every row that counts.
                out = F.scaled_dot_product_attention(q1, k1, v1, is_causal=True)
                outputs.append(out.transpose(1, 2).flatten(0, 1))  # [samples * longest, heads, dim]
        return torch.cat(outputs).index_select(0, self.unpack).to(kind)

    def _attend_flash(self, q: Tensor, k: Tensor, v: Tensor, repeat: int) -> Tensor:
        """The same in one kernel for all samples, which only GPUs have."""
        from torch.nn.attention.varlen import varlen_attn  # with PyTorch's compiler: seconds, and not for a CPU

        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        bounds, longest = self.bounds, self.longest
        mixed = varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0))
        assert isinstance(mixed, Tensor)  # not with the sums of exponents, which are optional
        return mixed


def pack(samples: Sequence[Sample]) -> Batch:
    """One batch of all samples, in their order."""
    lengths = np.array([len(sample.ids) for sample in samples])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    tokens = np.concatenate([sample.ids for sample in samples]).astype(np.int64)
    trained = np.concatenate([sample.trained for sample in samples])
    positions = np.arange(len(tokens)) - np.repeat(starts, lengths)
    groups, unpack, used = [], np.empty(len(tokens), np.int64), 0
    for members in _groups(lengths):
        longest = lengths[members].max()
        columns = np.minimum(np.arange(longest)[None], lengths[members][:, None] - 1)  # [samples, longest]
        groups.append(torch.from_numpy(starts[members][:, None] + columns))
        for place, member in enumerate(members):
            start, length = starts[member], lengths[member]
            unpack[start : start + length] = used + place * longest + np.arange(length)
        used += len(members) * longest
    return Batch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(np.where(trained, tokens, NO_LABEL)),
        positions=torch.from_numpy(positions),
        last=torch.from_numpy(np.repeat(starts + lengths - 1, lengths)),
        groups=groups,
        unpack=torch.from_numpy(unpack),
        bounds=torch.from_numpy(np.concatenate([starts, [len(tokens)]]).astype(np.int32)),
        longest=int(lengths.max()),
    )


def _groups(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of samples of like length: padding to the longest of a group adds at most half of a sample."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[NDArray[np.int64]] = []
    while len(order):
        alike = int((3 * lengths[order] >= 2 * lengths[order[0]]).sum())
        groups.append(order[:alike])
        order = order[alike:]
    return groups
