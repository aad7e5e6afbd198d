"""What stays on the device between steps: the KV pool, hidden states of every cached position, ids seen per slot.

Nothing here waits for the device; positions are addressed by block tables alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vita_audio.engines.tensorrt_llm.layout import Layout
from vita_audio.engines.torch.prompt_rows import PromptRows


class DeviceState:
    """Allocated once.

    Attributes:
        pool: [blocks, layers of both engines, 2, kv_heads, tokens_per_block, head_size].
        hidden: H0 of each position, paged like the pool: [blocks * tokens_per_block, hidden]. A burst reads rows from
            anywhere behind the backbone (a long prompt, a mode with long backbone runs), so all positions are kept.
        prompt_rows: rows of embeddings of a step; none where prompts have ids only.
        seen: bool [slots, vocab], ids of prompt and output, which the repetition penalty applies to.
    """

    def __init__(self, layout: Layout, device: torch.device, kv_dtype: torch.dtype, hidden_dtype: torch.dtype) -> None:
        config = layout.config
        shape = (layout.blocks, layout.pool_layers, 2, *layout.block_shape)
        self.pool = torch.zeros(shape, dtype=kv_dtype, device=device)
        rows = layout.blocks * layout.tokens_per_block
        self.hidden = torch.zeros(rows, config.hidden_size, dtype=hidden_dtype, device=device)
        table = torch.zeros(layout.prompt_rows, config.hidden_size, dtype=hidden_dtype, device=device)
        self.prompt_rows = PromptRows(table)
        self.seen = torch.zeros(layout.slots, config.vocab_size, dtype=torch.bool, device=device)

    def begin(self, slot: int, kept: Sequence[int]) -> None:
        """A stream starts behind the tokens `kept`. Its caches need no clearing: lengths say what is read."""
        self.seen[slot].fill_(False)
        self.seen[slot].index_fill_(0, torch.tensor(kept, dtype=torch.int64, device=self.seen.device), True)

    def see(self, seen_index: Tensor) -> None:
        """Mark ids as seen: int64 [tokens], slot * vocab + id. Sampled tokens come back as input before the next draw
        of their stream, so what goes in is all there is to mark."""
        self.seen.view(-1).index_fill_(0, seen_index, True)

    def keep_hidden(self, rows: Tensor, hidden: Tensor) -> None:
        self.hidden.index_copy_(0, rows, hidden)

    def hidden_of(self, rows: Tensor) -> Tensor:
        return self.hidden.index_select(0, rows)

    def seen_of(self, slots: Tensor, first_id: int = 0) -> Tensor:
        """bool [streams, vocab - first_id]."""
        return self.seen[:, first_id:].index_select(0, slots)
