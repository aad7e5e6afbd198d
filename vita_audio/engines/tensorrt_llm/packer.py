"""Rows of the scheduler -> every tensor of one engine call (`tensors.py`), on the host.

A row is packed as one of two phases. Decode steps of one token are generation rows. Everything else is a context-phase
row with past KV: prefill chunks, the catch-up after a burst (the attention plugin takes one token per generation row),
and every MCTP run. Context rows come first in the batch, as the plugin demands.

With C new tokens after P cached ones:     context phase        generation (C = 1)
    host_request_types                     0                    1
    context_lengths, host_context_lengths  C                    tokens of the prompt
    sequence_length                        P + C                P + 1
    host_past_key_value_lengths            P + C                P
    last_token_ids                         inclusive prefix sums of the new tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import BurstRow, ExtendRow, Floats, Sampling
from vita_audio.engines.sampling import uniforms
from vita_audio.engines.tensorrt_llm.block_manager import BlockManager
from vita_audio.engines.tensorrt_llm.layout import Layout
from vita_audio.engines.tensorrt_llm.tensors import CONTEXT, GENERATION, Arrays


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One engine call. Batch row b holds the caller's row `order[b]`; `samples`: a token of it is read.

    `embedded`: what the ids from vocab_size on stand for, in their order, [n, hidden] each.
    """

    arrays: Arrays
    order: list[int]
    samples: bool
    embedded: Sequence[Floats] = ()


class Packer:
    """Makes packed steps; remembers per slot how it samples and how long its prompt is.

    Args:
        layout: sizes.
        blocks: holds the block tables; the caller has grown them over the rows of a step.
        pool_pointer: device address of the pool.
    """

    def __init__(self, layout: Layout, blocks: BlockManager, pool_pointer: int) -> None:
        self._layout, self._blocks = layout, blocks
        config, slots = layout.config, layout.slots
        self._sampling = [Sampling() for _ in range(slots)]
        self._prompt_tokens = np.zeros(slots, np.int32)
        self._penalty, self._inv_temp = np.ones(slots, np.float32), np.ones(slots, np.float32)
        self._top_k, self._top_p = np.ones(slots, np.int32), np.ones(slots, np.float32)
        #: Tensors that are the same in every step of an engine, for as many streams as there are slots.
        self.backbone_constants = self._constants(0, config.backbone_layers, pool_pointer)
        if layout.embedded:
            self.backbone_constants["tasks"] = np.zeros(layout.max_num_tokens, np.int32)
            self.backbone_constants["prompt_vocab_size"] = np.array([layout.prompt_rows], np.int32)
        self.mctp_constants = self._constants(config.backbone_layers, config.mctp_modules, pool_pointer)

    def begin(self, slot: int, sampling: Sampling) -> None:
        """A stream starts in the slot."""
        limit = self._layout.candidates
        self._sampling[slot] = sampling
        self._prompt_tokens[slot] = 0
        self._penalty[slot], self._top_p[slot] = sampling.repetition_penalty, sampling.top_p
        self._inv_temp[slot] = 1.0 / (sampling.temperature or 1.0)
        self._top_k[slot] = min(sampling.top_k or limit, limit)

    def extend(self, rows: Sequence[ExtendRow]) -> PackedStep:
        """A backbone step: at most one row per slot."""
        for row in rows:
            self._check_row(row.slot, row.start, row.start + len(row.tokens), "tokens")
            if row.index == 0:
                self._prompt_tokens[row.slot] = row.start + len(row.tokens)
        decodes = [len(row.tokens) == 1 and bool(row.index) for row in rows]
        order = [i for i, decode in enumerate(decodes) if not decode] + [i for i, d in enumerate(decodes) if d]
        batch = [rows[i] for i in order]
        generating = np.array([decodes[i] for i in order])
        arrays = self._decoder(
            np.array([row.slot for row in batch]),
            np.array([row.start for row in batch]),
            np.array([len(row.tokens) for row in batch]),
            list(chain.from_iterable(row.tokens for row in batch)),
            generating,
        )
        embedded = self._put_embedded(arrays, batch)
        arrays |= self._first_streams(self.backbone_constants, arrays)
        arrays |= self._sampling_of([(row.slot, row.index) for row in batch], 1)
        return PackedStep(arrays, order, any(row.index is not None for row in rows), embedded)

    def _put_embedded(self, arrays: Arrays, batch: Sequence[ExtendRow]) -> list[Floats]:
        """Put ids of the prompt table where rows of embeddings stand; the ids seen stay the plain ones."""
        ends, made = arrays["last_token_ids"].tolist(), []
        next_id = self._layout.config.vocab_size
        for row, end in zip(batch, ends, strict=True):
            if row.embedded is not None:
                count = len(row.embedded.places)
                arrays["input_ids"][end - len(row.tokens) + row.embedded.places] = next_id + np.arange(count)
                next_id += count
                made.append(row.embedded.rows)
        return made

    def burst(self, rows: Sequence[BurstRow]) -> PackedStep:
        """An MCTP step: every row is context phase, so the order stays."""
        modules = self._layout.config.mctp_modules
        forced = np.full((len(rows), modules), -1, np.int32)
        for i, row in enumerate(rows):
            count = row.stop - row.start
            self._check_row(row.slot, row.start, row.stop, "rows")
            known = count if row.index is not None else count + modules - 1
            if len(row.tokens) != known:
                raise EngineError(
                    f"burst: slot {row.slot} has {len(row.tokens)} tokens for rows [{row.start}, {row.stop}), "
                    f"must have {known}"
                )
            # What follows a prefill chunk is known. What its last module samples is not read.
            forced[i, : known - count] = row.tokens[count:]
        counts = np.array([row.stop - row.start for row in rows])
        arrays = self._decoder(
            np.array([row.slot for row in rows]),
            np.array([row.start for row in rows]),
            counts,
            list(chain.from_iterable(row.tokens[: row.stop - row.start] for row in rows)),
            np.zeros(len(rows), bool),
        )
        arrays |= self._first_streams(self.mctp_constants, arrays)
        arrays["forced_tokens"] = forced
        # Module k + 1 reads the ids of module k moved up by one; each stream's last slot takes what was just drawn,
        # which the engine appends behind the tokens.
        shift = np.arange(1, counts.sum() + 1, dtype=np.int32)
        shift[counts.cumsum() - 1] = counts.sum() + np.arange(len(rows))
        arrays["shift_index"] = shift
        arrays |= self._sampling_of([(row.slot, row.index) for row in rows], modules)
        return PackedStep(arrays, list(range(len(rows))), any(row.index is not None for row in rows))

    def _check_row(self, slot: int, start: int, stop: int, what: str) -> None:
        layout = self._layout
        if not 0 <= start < stop <= layout.context:
            raise EngineError(f"slot {slot}: positions [{start}, {stop}) are not in [0, context {layout.context})")
        if stop - start > layout.max_num_tokens:
            raise EngineError(
                f"slot {slot}: {stop - start} {what} in one call, the engines take max_num_tokens "
                f"{layout.max_num_tokens}; lower the prefill chunk or rebuild"
            )

    def _decoder(self, slots: NDArray, starts: NDArray, counts: NDArray, ids: list[int], generating: NDArray) -> Arrays:
        """What both engines and the steps around them read, but for the constants. All arguments are per batch row,
        `ids` per token."""
        layout = self._layout
        ends = counts.cumsum()
        row_of_token = np.repeat(np.arange(len(slots)), counts)
        positions = np.arange(ends[-1]) - np.repeat(ends - counts, counts) + np.repeat(starts, counts)
        table = self._blocks.table[slots]  # [streams, blocks]
        # In units of one layer's keys in one block: a block holds (keys, values) of every layer, and the attention
        # plugin adds its own layer's part.
        keys = table * (layout.pool_layers * 2)
        offsets = np.stack([keys, keys + 1], axis=1)[None].astype(np.int32)  # [1, streams, 2, blocks]
        input_ids = np.array(ids, np.int32)
        size = layout.tokens_per_block
        context_lengths = np.where(generating, self._prompt_tokens[slots], counts).astype(np.int32)
        return {
            "input_ids": input_ids,
            "position_ids": positions.astype(np.int32),
            "last_token_ids": ends.astype(np.int32),
            "context_lengths": context_lengths,
            "sequence_length": (starts + counts).astype(np.int32),
            "kv_cache_block_offsets": offsets,
            "host_request_types": np.where(generating, GENERATION, CONTEXT).astype(np.int32),
            "host_context_lengths": context_lengths,
            "host_past_key_value_lengths": np.where(generating, starts, starts + counts).astype(np.int32),
            "host_kv_cache_block_offsets": offsets,
            "slots": slots.astype(np.int64),
            "hidden_rows": table[row_of_token, positions // size].astype(np.int64) * size + positions % size,
            "seen_index": np.repeat(slots, counts) * layout.config.vocab_size + input_ids.astype(np.int64),
        }

    def _sampling_of(self, rows: Sequence[tuple[int, int | None]], draws: int) -> Arrays:
        """Tensors of `SAMPLING` for batch rows (slot, index of the first token that is drawn, None where none is)."""
        slots = np.array([slot for slot, _ in rows])
        sampled, uniform = [], []
        for b, (slot, index) in enumerate(rows):
            sampling = self._sampling[slot]
            if index is not None and not sampling.greedy:
                sampled.append(b)
                uniform.append(uniforms(sampling.seed, index, draws))
        token_rows = np.arange(len(rows), dtype=np.int32)
        token_rows[sampled] = len(rows) + np.arange(len(sampled))
        sampling_slots = slots[sampled]
        return {
            "penalty": self._penalty[slots],
            "token_rows": token_rows,
            "sampled_rows": np.array(sampled, np.int32),
            "inv_temp": self._inv_temp[sampling_slots],
            "top_k": self._top_k[sampling_slots],
            "top_p": self._top_p[sampling_slots],
            "uniform": np.array(uniform, np.float32).reshape(len(sampled), draws),
        }

    def _constants(self, first_layer: int, layers: int, pool_pointer: int) -> Arrays:
        layout = self._layout
        knobs = np.full(16, -1, np.int64)
        knobs[0] = 1  # multi-block mode: long contexts of few streams fill the GPU
        knobs[1] = 1  # float32 accumulation in context FMHA
        in_pool = np.arange(first_layer, first_layer + layers)
        return {
            "cache_indirection": np.zeros((layout.slots, 1, layout.context), np.int32),
            "host_kv_cache_pool_pointers": np.array([[pool_pointer, 0]], np.int64),
            "host_kv_cache_pool_mapping": np.stack([np.zeros_like(in_pool), in_pool], axis=1).astype(np.int32),
            "host_max_attention_window_sizes": np.full(layers, layout.context, np.int32),
            "host_sink_token_length": np.zeros(1, np.int32),
            "host_runtime_perf_knobs": knobs,
            "host_context_progress": np.zeros(1, np.int64),
        }

    @staticmethod
    def _first_streams(constants: Arrays, arrays: Arrays) -> Arrays:
        """Constants for as many streams and tokens as a step has."""
        made = {**constants, "cache_indirection": constants["cache_indirection"][: len(arrays["last_token_ids"])]}
        if "tasks" in constants:
            made["tasks"] = constants["tasks"][: len(arrays["input_ids"])]
        return made
