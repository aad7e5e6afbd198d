"""Rows of embeddings in prompts of the TensorRT-LLM engine, over the reference executor: ids of the prompt table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from generation_doubles import generate
from language_models import random_weights
from spoken_prompts import AUDIO, spoken_requests
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import BurstRow, Embedded, ExtendRow, Sampling
from vita_audio.engines.tensorrt_llm.block_manager import BlockManager
from vita_audio.engines.tensorrt_llm.executor import Tensors
from vita_audio.engines.tensorrt_llm.language_model import TensorRtLlmLanguageModel
from vita_audio.engines.tensorrt_llm.layout import Layout, layout_for
from vita_audio.engines.tensorrt_llm.packer import Packer
from vita_audio.engines.tensorrt_llm.reference_executor import ReferenceExecutor
from vita_audio.engines.tensorrt_llm.tensors import PROMPT_TABLE, backbone_inputs, backbone_step
from vita_audio.engines.torch.language_model import TorchLanguageModel

CONFIG = LanguageModelConfig(300, 32, 48, 2 + 4, 4, 2, 4, 512)
TENSORS = random_weights(CONFIG)
SLOTS, CONTEXT, MOST = 4, 256, 48
REQUESTS = spoken_requests(CONFIG.hidden_size, (1, 4))


def plus_layout() -> Layout:
    return layout_for(CONFIG, SLOTS, CONTEXT, MOST, tokens_per_block=8, embedded=True)


def reference(chunk: int) -> list[list[int]]:
    return generate(TorchLanguageModel(CONFIG, TENSORS, SLOTS, CONTEXT, embedded=True), REQUESTS, chunk)


@pytest.mark.parametrize("chunk", [7, 32])
def test_tokens_are_the_reference_s(chunk: int) -> None:
    """Clips cut anywhere, several streams in a call; 4 streams of 32 tokens are more than a call takes."""
    engine = TensorRtLlmLanguageModel(ReferenceExecutor(plus_layout(), TENSORS))
    assert engine.embedded_size == CONFIG.hidden_size
    assert generate(engine, REQUESTS, chunk) == reference(chunk)


class Corrupted(ReferenceExecutor):
    """Its backbone gets other inputs than were packed."""

    def __init__(self, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        super().__init__(plus_layout(), TENSORS)
        self._change = change

    def backbone(self, inputs: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        copies = {name: tensor.clone() for name, tensor in inputs.items()}
        self._change(copies)
        return super().backbone(copies)


def no_table(inputs: dict[str, torch.Tensor]) -> None:
    inputs[PROMPT_TABLE].zero_()


def rows_in_another_order(inputs: dict[str, torch.Tensor]) -> None:
    ids = inputs["input_ids"]
    of_table = ids >= CONFIG.vocab_size
    ids[of_table] = ids[of_table].flip(0)


def plain_ids(inputs: dict[str, torch.Tensor]) -> None:
    inputs["input_ids"][inputs["input_ids"] >= CONFIG.vocab_size] = AUDIO


@pytest.mark.parametrize("change", [no_table, rows_in_another_order, plain_ids])
def test_the_reference_executor_notices_wrong_rows(change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    made = generate(TensorRtLlmLanguageModel(Corrupted(change)), REQUESTS, 32)
    wanted = reference(32)
    assert made[1] != wanted[1], "of two clips"
    assert made[2] == wanted[2], "of ids alone"


def test_a_packed_step_by_hand() -> None:
    """A decode step between two prompts with speech: it goes last. What the penalty sees are plain ids."""
    layout = plus_layout()
    blocks = BlockManager(SLOTS, layout.blocks, 8, layout.blocks_per_slot)
    packer = Packer(layout, blocks, 0)
    for slot in range(3):
        blocks.resize(slot, 16)
        packer.begin(slot, Sampling())
    rows = [np.full((n, CONFIG.hidden_size), float(n), np.float32) for n in (2, 1)]
    step = packer.extend(
        [
            ExtendRow(0, 0, [7, AUDIO, AUDIO, 8], None, Embedded(np.array([1, 2]), rows[0])),
            ExtendRow(1, 3, [9], 5),
            ExtendRow(2, 4, [AUDIO, 6], None, Embedded(np.array([0]), rows[1])),
        ]
    )
    assert step.order == [0, 2, 1]
    assert step.arrays["input_ids"].tolist() == [7, 300, 301, 8, 302, 6, 9]
    seen = [7, AUDIO, AUDIO, 8, 600 + AUDIO, 606, 309]
    assert step.arrays["seen_index"].tolist() == seen
    assert step.arrays["tasks"].tolist() == [0] * 7
    assert step.arrays["prompt_vocab_size"].tolist() == [MOST]
    assert [part.tolist() for part in step.embedded] == [part.tolist() for part in rows]
    assert step.arrays.keys() == backbone_step(True).keys()

    burst = packer.burst([BurstRow(0, 0, 3, [AUDIO, AUDIO, 8], 4, 1)])
    assert burst.arrays["input_ids"].tolist() == [AUDIO, AUDIO, 8]
    assert "tasks" not in burst.arrays


def test_inputs_of_an_engine_with_a_prompt_table() -> None:
    assert backbone_inputs(True) - backbone_inputs(False) == {"tasks", "prompt_vocab_size", PROMPT_TABLE}


def test_an_engine_of_a_base_checkpoint_takes_none() -> None:
    layout = replace(plus_layout(), embedded=False)
    assert layout.prompt_rows == 0
    engine = TensorRtLlmLanguageModel(ReferenceExecutor(layout, TENSORS))
    engine.begin(0, Sampling())
    with pytest.raises(EngineError, match="this checkpoint reads speech as tokens"):
        engine.extend([ExtendRow(0, 0, [AUDIO], 0, Embedded(np.array([0]), np.zeros((1, 32), np.float32)))])
