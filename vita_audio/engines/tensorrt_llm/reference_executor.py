"""Executor in PyTorch that reads exactly what the TensorRT-LLM engines read: the contract of a step, executable.

It stands in for the engines in tests and in the conformance command, so that packing, paging, rewinding and in-flight
batching are proven without a GPU. It takes nothing but the named inputs: lengths and phases from the host tensors, the
pool from its pointer, keys and values through block offsets and the layer mapping, rotary positions from the cache
index as the attention plugin does. Wrong metadata gives wrong tokens or an error here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_llm.executor import Tensors
from vita_audio.engines.tensorrt_llm.layout import Layout
from vita_audio.engines.tensorrt_llm.tensors import CONTEXT, GENERATION, PROMPT_TABLE
from vita_audio.engines.torch.sampler import draw_some
from vita_audio.models.language_model import Attend, LanguageModel


class ReferenceExecutor:
    """`Executor` over the reference modules, float32 on the CPU.

    Args:
        layout: sizes.
        tensors: the checkpoint, released keys.
        banned_ids: token ids that MCTP modules never give (built into a real engine).
    """

    device = torch.device("cpu")
    hidden_dtype = kv_dtype = torch.float32

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor], banned_ids: Sequence[int] = ()) -> None:
        self.layout = layout
        self._model = LanguageModel(layout.config)
        self._model.load_state_dict(dict(tensors))
        self._model.float().eval()
        banned = torch.zeros(layout.config.vocab_size, dtype=torch.bool)
        banned[list(banned_ids)] = True
        self._banned = banned[layout.head_first_id :]
        self._head = self._model.lm_head.weight[layout.head_first_id :]

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def backbone(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        batch = _Batch(inputs, self.layout)
        ids, embedded = inputs["input_ids"].long(), None
        if self.layout.embedded:  # as `PromptTuningEmbedding` of TensorRT-LLM
            last_id = self.layout.config.vocab_size - 1
            places = (ids > last_id).nonzero()[:, 0]
            rows = ids[places] - last_id - 1 + inputs["tasks"][places] * inputs["prompt_vocab_size"]
            embedded = places, inputs[PROMPT_TABLE][rows]
            ids = ids.clamp(max=last_id)
        hidden = self._model.backbone(ids, batch.positions, batch.attend, embedded)
        return self._model.logits(hidden[inputs["last_token_ids"].long() - 1]), hidden

    def mctp(self, inputs: Tensors) -> Tensor:
        batch, sampled = _Batch(inputs, self.layout), []
        ids, hidden, seen = inputs["input_ids"].long(), inputs["hidden_states_in"], inputs["seen"].clone()
        last = inputs["last_token_ids"].long() - 1
        for k in range(self.layout.config.mctp_modules):
            hidden = self._model.mctp(k, ids, hidden, batch.positions, batch.attend(k))
            logits, uniform = F.linear(hidden[last], self._head), inputs["uniform"][:, k]
            row = draw_some(logits, seen, self._banned, inputs, uniform, self.layout.candidates)
            seen[torch.arange(len(row)), row] = True
            forced = inputs["forced_tokens"][:, k].long()
            token = torch.where(forced >= 0, forced, row + self.layout.head_first_id)
            sampled.append(token)
            ids = torch.cat([ids, token])[inputs["shift_index"].long()]
        return torch.stack(sampled, 1)


class _Batch:
    """The attention plugin's view of one step: who the packed rows belong to and where their keys and values lie.

    Raises:
        EngineError: metadata the plugin would refuse, or that contradict each other.
    """

    def __init__(self, inputs: Tensors, layout: Layout) -> None:
        self._layout = layout
        types = inputs["host_request_types"].tolist()
        if types != sorted(types) or not set(types) <= {CONTEXT, GENERATION}:
            raise EngineError(f"host_request_types {types}: context rows (0) come before generation rows (1)")
        new = [c if t == CONTEXT else 1 for t, c in zip(types, inputs["host_context_lengths"].tolist(), strict=True)]
        self._totals: list[int] = inputs["sequence_length"].tolist()
        host_totals = [
            past if t == CONTEXT else past + 1
            for t, past in zip(types, inputs["host_past_key_value_lengths"].tolist(), strict=True)
        ]
        if host_totals != self._totals or sum(new) != len(inputs["input_ids"]):
            raise EngineError(
                f"lengths contradict each other: sequence_length {self._totals}, on the host {host_totals}; "
                f"{sum(new)} new tokens, {len(inputs['input_ids'])} input_ids"
            )
        self._new = new
        self._past = [total - n for total, n in zip(self._totals, new, strict=True)]
        self.positions = torch.cat(
            [torch.arange(past, total) for past, total in zip(self._past, self._totals, strict=True)]
        )
        self._mapping = inputs["host_kv_cache_pool_mapping"].tolist()
        self._units = _pool_at(int(inputs["host_kv_cache_pool_pointers"][0, 0]), layout)
        self._offsets = inputs["kv_cache_block_offsets"].long()  # [pools, streams, 2, blocks]

    def attend(self, layer: int) -> Attend:
        """Attention of the packed rows in one layer of the engine, each row's keys and values written first."""
        pool, layer_in_pool = self._mapping[layer]
        offsets = self._offsets[pool] + 2 * layer_in_pool  # [streams, 2, blocks]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            outputs = []
            parts = (x.split(self._new) for x in (q, k, v))
            for b, (q_part, k_part, v_part) in enumerate(zip(*parts, strict=True)):
                past, total = self._past[b], self._totals[b]
                keys = self._store(offsets[b, 0], past, total, k_part)
                values = self._store(offsets[b, 1], past, total, v_part)
                mask = torch.ones(total - past, total, dtype=torch.bool).tril(past)
                q1, k1, v1 = (x.transpose(0, 1)[None] for x in (q_part, keys, values))  # [1, heads, rows, dim]
                out = F.scaled_dot_product_attention(q1, k1, v1, attn_mask=mask, enable_gqa=True)
                outputs.append(out[0].transpose(0, 1))
            return torch.cat(outputs)

        return attend

    def _store(self, blocks: Tensor, past: int, total: int, new: Tensor) -> Tensor:
        """Write positions [past, total) and read [0, total): [total, kv_heads, dim]. `blocks` [blocks] are offsets."""
        position = torch.arange(total)
        unit = blocks[position // self._layout.tokens_per_block]
        within = position % self._layout.tokens_per_block
        self._units[unit[past:], :, within[past:]] = new
        return self._units[unit, :, within]


def _pool_at(pointer: int, layout: Layout) -> Tensor:
    """The pool at an address, in the unit of block offsets: [blocks * layers * 2, kv_heads, tokens, head_size]."""
    heads, tokens, size = layout.block_shape
    units = layout.blocks * layout.pool_layers * 2
    floats = (ctypes.c_float * (units * heads * tokens * size)).from_address(pointer)
    return torch.frombuffer(floats, dtype=torch.float32).view(units, heads, tokens, size)
