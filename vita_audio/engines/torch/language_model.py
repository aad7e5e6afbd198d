"""Backbone and MCTP in plain PyTorch: the reference every other engine is held against, on the CPU.

Rows of all streams in a call are packed along one axis [rows, ...]; only attention works stream by stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.cached_tokens import SlotEngine
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.sampling import uniforms
from vita_audio.engines.torch.sampler import SamplingTable, candidates, draw
from vita_audio.models.language_model import Attend, LanguageModel


class TorchLanguageModel(SlotEngine):
    """`LanguageModelEngine` over `models.language_model.LanguageModel`, float32.

    Args:
        config: sizes.
        tensors: the checkpoint, released keys.
        slots: streams that may be open at once.
        context: tokens a slot holds.
        banned_ids: token ids that must never be sampled.
        embedded: the checkpoint is a Plus one: prompts bring rows of embeddings.
    """

    def __init__(
        self,
        config: LanguageModelConfig,
        tensors: Mapping[str, Tensor],
        slots: int,
        context: int,
        banned_ids: Sequence[int] = (),
        embedded: bool = False,
    ) -> None:
        embedded_size = config.hidden_size if embedded else 0
        super().__init__(slots, context, config.mctp_modules, config.vocab_size, embedded_size)
        self.config = config
        self._model = LanguageModel(config)
        self._model.load_state_dict(dict(tensors))
        self._model.float().eval()
        shape = (config.num_hidden_layers, 2, slots, context, config.num_key_value_heads, config.head_dim)
        self._cache = torch.zeros(shape)
        self._hidden = torch.zeros(slots, context, config.hidden_size)  # H0 of each position
        self._seen = torch.zeros(slots, config.vocab_size, dtype=torch.bool)
        self._sampling = [Sampling() for _ in range(slots)]
        self._table = SamplingTable.create(slots, self._seen.device)
        self._banned = torch.zeros(config.vocab_size, dtype=torch.bool)
        self._banned[list(banned_ids)] = True

    def _begin(self, slot: int, sampling: Sampling, kept: Sequence[int]) -> None:
        self._seen[slot] = False
        self._seen[slot, list(kept)] = True
        self._sampling[slot] = sampling
        self._table.put(slot, sampling, self.vocab_size)

    @torch.inference_mode()
    def _extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        spans = [(row.slot, row.start, row.start + len(row.tokens)) for row in rows]
        for row in rows:
            self._seen[row.slot, list(row.tokens)] = True
        tokens = torch.tensor([token for row in rows for token in row.tokens])
        positions = torch.cat([torch.arange(start, stop) for _, start, stop in spans])
        hidden = self._model.backbone(tokens, positions, lambda layer: self._attend(layer, spans), _packed(rows))
        for (slot, start, stop), part in zip(spans, hidden.split([b - a for _, a, b in spans]), strict=True):
            self._hidden[slot, start:stop] = part
        return [
            None if row.index is None else self._sample(row.slot, self._hidden[row.slot, stop - 1], row.index)
            for row, (_, _, stop) in zip(rows, spans, strict=True)
        ]

    @torch.inference_mode()
    def _burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        spans = [(row.slot, row.start, row.stop) for row in rows]
        counts = [stop - start for _, start, stop in spans]
        positions = torch.cat([torch.arange(start, stop) for _, start, stop in spans])
        hidden = torch.cat([self._hidden[slot, start:stop] for slot, start, stop in spans])
        known = [list(row.tokens) for row in rows]
        sampled: list[list[int]] = [[] for _ in rows]
        for k in range(self.mctp_modules):
            tokens = torch.tensor([t for ids, count in zip(known, counts, strict=True) for t in ids[k : k + count]])
            attend = self._attend(self.config.backbone_layers + k, spans)
            hidden = self._model.mctp(k, tokens, hidden, positions, attend)
            ends = torch.tensor(counts).cumsum(0) - 1
            for i, row in enumerate(rows):
                if row.index is None:
                    continue
                # Tokens past `commit` only fill the caches; the next burst runs those rows again.
                token = self._sample(row.slot, hidden[ends[i]], row.index + k, commit=k < row.commit)
                known[i].append(token)
                sampled[i].append(token)
        return [tokens[: row.commit] for tokens, row in zip(sampled, rows, strict=True)]

    def _attend(self, layer: int, spans: Sequence[tuple[int, int, int]]) -> Attend:
        """Attention of packed rows, each span (slot, start, stop) against its own cache, which it overwrites."""
        keys, values = self._cache[layer]  # each [slots, context, kv_heads, dim]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            outputs = []
            sizes = [stop - start for _, start, stop in spans]
            parts = zip(spans, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
            for (slot, start, stop), q_part, k_part, v_part in parts:
                keys[slot, start:stop], values[slot, start:stop] = k_part, v_part
                mask = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
                heads_first = (q_part, keys[slot, :stop], values[slot, :stop])
                q1, k1, v1 = (x.transpose(0, 1)[None] for x in heads_first)  # [1, heads, rows, dim]
                out = F.scaled_dot_product_attention(q1, k1, v1, attn_mask=mask, enable_gqa=True)
                outputs.append(out[0].transpose(0, 1))
            return torch.cat(outputs)

        return attend

    def _sample(self, slot: int, hidden: Tensor, index: int, commit: bool = True) -> int:
        """hidden [hidden] -> token."""
        sampling, row = self._sampling[slot], slice(slot, slot + 1)
        table = SamplingTable(*(column[row] for column in self._table))
        uniform = torch.from_numpy(uniforms(sampling.seed, index, 1))
        logits, width = self._model.logits(hidden)[None], candidates(sampling, self.vocab_size)
        token = int(draw(logits, self._seen[row], self._banned, table, uniform, width))
        if commit:
            self._seen[slot, token] = True
        return token


def _packed(rows: Sequence[ExtendRow]) -> tuple[Tensor, Tensor] | None:
    """Places [n] along the packed axis and embeddings [n, hidden] of all rows; None where there are none."""
    places, embeddings, start = [], [], 0
    for row in rows:
        if row.embedded is not None:
            places.append(row.embedded.places + start)
            embeddings.append(row.embedded.rows)
        start += len(row.tokens)
    if not places:
        return None
    return torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(embeddings))
