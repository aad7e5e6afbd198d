"""Rows of embeddings in prompts of torch_cuda, on a CPU: as the reference, by the programs that there are anyway."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from generation_doubles import generate
from language_models import random_weights
from spoken_prompts import AUDIO, spoken_requests
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Embedded, ExtendRow, Sampling
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.engines.torch_cuda import engine as engine_module
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import Limits, most_rows
from vita_audio.engines.torch_cuda.weights import load_weights

CONFIG = LanguageModelConfig(300, 64, 96, 2 + 4, 4, 2, 4, 512)
TENSORS = random_weights(CONFIG)
SLOTS, CONTEXT = 4, 256


def make(
    rows: int = 512, config: LanguageModelConfig = CONFIG, tensors: dict[str, torch.Tensor] = TENSORS
) -> TorchCudaLanguageModel:
    weights = load_weights(config, tensors, torch.device("cpu"), torch.float32, rows)
    return TorchCudaLanguageModel(config, weights, Settings(SLOTS, CONTEXT))


REQUESTS = spoken_requests(CONFIG.hidden_size, (1, 4))


@pytest.mark.parametrize("chunk", [7, 32, 200])
def test_tokens_are_the_reference_s(chunk: int) -> None:
    """Clips cut anywhere, in steps of few rows, in groups and alone; also where the engine cuts a chunk again."""
    wanted = generate(TorchLanguageModel(CONFIG, TENSORS, SLOTS, CONTEXT, embedded=True), REQUESTS, chunk)
    assert generate(make(), REQUESTS, chunk) == wanted
    with mock.patch.object(engine_module, "MAX_STREAM_ROWS", 24):
        assert generate(make(), REQUESTS, chunk) == wanted
    plain = [replace(one, embedded=None) for one in REQUESTS]
    assert all(
        a != b for a, b, one in zip(wanted, generate(make(), plain, chunk), REQUESTS, strict=True) if one.embedded
    )


def test_a_head_that_is_the_embedding_draws_no_row_of_a_prompt() -> None:
    tied = replace(CONFIG, tie_word_embeddings=True)
    tensors = random_weights(tied)
    wanted = generate(TorchLanguageModel(tied, tensors, SLOTS, CONTEXT, embedded=True), REQUESTS, 32)
    assert generate(make(config=tied, tensors=tensors), REQUESTS, 32) == wanted


def test_programs_are_those_of_prompts_without_speech() -> None:
    """The set that is prepared stays closed, and nothing is added to any of its functions."""
    spoken_engine, plain_engine = make(), make(rows=0)
    assert spoken_engine.prepare(32) == plain_engine.prepare(32)
    prepared = set(spoken_engine.programs)
    generate(spoken_engine, REQUESTS, 32)
    assert set(spoken_engine.programs) == prepared == set(plain_engine.programs)


def test_an_engine_of_a_base_checkpoint_takes_none() -> None:
    engine = make(rows=0)
    assert engine.embedded_size == 0
    engine.begin(0, Sampling())
    with pytest.raises(EngineError, match="this checkpoint reads speech as tokens"):
        engine.extend([ExtendRow(0, 0, [AUDIO], 0, Embedded(np.array([0]), np.zeros((1, 64), np.float32)))])


@pytest.mark.parametrize(("slots", "chunk", "most"), [(1, 256, 512), (64, 256, 704), (2, 1000, 1000)])
def test_room_for_every_call(slots: int, chunk: int, most: int) -> None:
    """64 streams that all end their prompts with 11 rows of speech; a long chunk."""
    assert most_rows(Limits(slots, 10, 4096), chunk) == most
