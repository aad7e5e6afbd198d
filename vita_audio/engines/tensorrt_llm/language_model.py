"""The language model engine over a pair of TensorRT-LLM engines: schedules rows into packed steps and runs them.

Where the time goes on a device: a step is packed and enqueued without waiting (metadata copy, engine call, sampling);
the host waits once, for the tokens that the scheduler asked for, and not at all for prefill chunks. All K modules of a
burst are one engine call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from vita_audio.engines.cached_tokens import SlotEngine
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.tensorrt_llm.block_manager import BlockManager
from vita_audio.engines.tensorrt_llm.device_state import DeviceState
from vita_audio.engines.tensorrt_llm.executor import Executor
from vita_audio.engines.tensorrt_llm.packer import PackedStep, Packer
from vita_audio.engines.tensorrt_llm.staging import Staging
from vita_audio.engines.tensorrt_llm.tensors import (
    MCTP_INPUTS,
    MCTP_STEP,
    PROMPT_TABLE,
    backbone_inputs,
    backbone_step,
)
from vita_audio.engines.torch.sampler import draw_some

Row = TypeVar("Row", ExtendRow, BurstRow)


class TensorRtLlmLanguageModel(SlotEngine):
    """`LanguageModelEngine` over an executor.

    Args:
        executor: runs the engine calls.
        banned_ids: token ids that the backbone must never give; the MCTP engine is built with its own list.
    """

    def __init__(self, executor: Executor, banned_ids: Sequence[int] = ()) -> None:
        self.layout = layout = executor.layout
        config = layout.config
        embedded_size = config.hidden_size if layout.embedded else 0
        super().__init__(layout.slots, layout.context, config.mctp_modules, config.vocab_size, embedded_size)
        self._executor = executor
        with executor.stream():
            self._state = DeviceState(layout, executor.device, executor.kv_dtype, executor.hidden_dtype)
            self._banned = torch.zeros(config.vocab_size, dtype=torch.bool, device=executor.device)
            self._banned[list(banned_ids)] = True
        self._blocks = BlockManager(layout.slots, layout.blocks, layout.tokens_per_block, layout.blocks_per_slot)
        self._packer = Packer(layout, self._blocks, self._state.pool.data_ptr())
        largest = {
            "tokens": layout.max_num_tokens,
            "streams": layout.slots,
            "sampled": layout.slots,
            "blocks": layout.blocks_per_slot,
            "context": layout.context,
            "modules": config.mctp_modules,
        }
        backbone = {**largest, "layers": config.backbone_layers, "draws": 1}
        mctp = {**largest, "layers": config.mctp_modules, "draws": config.mctp_modules}
        with executor.stream():
            steps = backbone_step(layout.embedded)
            self._to_backbone = Staging(steps, backbone, self._packer.backbone_constants, executor.device)
            self._to_mctp = Staging(MCTP_STEP, mctp, self._packer.mctp_constants, executor.device)

    def _begin(self, slot: int, sampling: Sampling, kept: Sequence[int]) -> None:
        # Steps in flight may still read blocks given back here: their next owner writes later on the same stream.
        self._blocks.resize(slot, len(kept))
        self._packer.begin(slot, sampling)
        with self._executor.stream():
            self._state.begin(slot, kept)

    @torch.inference_mode()
    def _extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        for row in rows:
            self._blocks.resize(row.slot, row.start + len(row.tokens))
        made: list[int | None] = []
        for part in self._parts(rows, [len(row.tokens) for row in rows]):
            step = self._packer.extend(part)
            with self._executor.stream():
                tokens = self._run_backbone(step)
                drawn = [0] * len(part) if tokens is None else _in_order(step, tokens.tolist())
            made += [None if row.index is None else token for row, token in zip(part, drawn, strict=True)]
        return made

    @torch.inference_mode()
    def _burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        made: list[list[int]] = []
        for part in self._parts(rows, [row.stop - row.start for row in rows]):
            step = self._packer.burst(part)
            with self._executor.stream():
                tokens = self._run_mctp(step)
                # Tokens past `commit` only fill the caches; the next burst runs those rows again.
                drawn = _in_order(step, tokens.tolist()) if step.samples else [[] for _ in part]
            made += [[] if row.index is None else ids[: row.commit] for row, ids in zip(part, drawn, strict=True)]
        return made

    def _run_backbone(self, step: PackedStep) -> Tensor | None:
        """Sampled tokens [streams] on the device, or None when no row asks for one."""
        tensors, state = self._to_backbone.put(step.arrays), self._state
        state.see(tensors["seen_index"])
        if step.embedded:
            state.prompt_rows.put(step.embedded)
        tensors[PROMPT_TABLE] = state.prompt_rows.table
        inputs = {name: tensors[name] for name in backbone_inputs(self.layout.embedded)}
        logits, hidden = self._executor.backbone(inputs)
        state.keep_hidden(tensors["hidden_rows"], hidden)
        if not step.samples:
            return None
        seen = state.seen_of(tensors["slots"])
        return draw_some(logits, seen, self._banned, tensors, tensors["uniform"][:, 0], self.layout.candidates)

    def _run_mctp(self, step: PackedStep) -> Tensor:
        """Tokens [streams, K] on the device."""
        tensors, state = self._to_mctp.put(step.arrays), self._state
        state.see(tensors["seen_index"])
        tensors["hidden_states_in"] = state.hidden_of(tensors["hidden_rows"])
        tensors["seen"] = state.seen_of(tensors["slots"], self.layout.head_first_id)
        return self._executor.mctp({name: tensors[name] for name in MCTP_INPUTS})

    def _parts(self, rows: Sequence[Row], counts: Sequence[int]) -> Iterator[Sequence[Row]]:
        """Rows of one engine call each: as many as max_num_tokens allows, in order."""
        first = total = 0
        for i, count in enumerate(counts):
            if i > first and total + count > self.layout.max_num_tokens:
                yield rows[first:i]
                first, total = i, 0
            total += count
        if rows:
            yield rows[first:]


def _in_order(step: PackedStep, drawn: list) -> list:
    """Results of batch rows, in the order of the caller's rows."""
    made = [None] * len(drawn)
    for result, index in zip(drawn, step.order, strict=True):
        made[index] = result
    return made
