"""Rows of embeddings in prompts of torch_cuda, on a CPU: as the reference, by the programs that there are anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from fake_cuda import Dispatched, fake_cuda
from language_models import random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Embedded, ExtendRow, LanguageModelEngine, Sampling
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.engines.torch_cuda import engine as engine_module
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.prompt_rows import PromptRows
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import Limits, most_rows
from vita_audio.engines.torch_cuda.weights import load_weights
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler

CONFIG = LanguageModelConfig(300, 64, 96, 2 + 4, 4, 2, 4, 512)
TENSORS = random_weights(CONFIG)
AUDIO = 299  # context_of_audio
SLOTS, CONTEXT = 4, 256


def make(
    rows: int = 512, config: LanguageModelConfig = CONFIG, tensors: dict[str, torch.Tensor] = TENSORS
) -> TorchCudaLanguageModel:
    weights = load_weights(config, tensors, torch.device("cpu"), torch.float32, rows)
    return TorchCudaLanguageModel(config, weights, Settings(SLOTS, CONTEXT))


def spoken(noise: int, length: int, clips: Sequence[tuple[int, int]], **options: Any) -> GenerationRequest:
    """A prompt whose `clips`, spans [start, stop), are rows of noise."""
    rng = np.random.default_rng(noise)
    prompt = rng.integers(0, AUDIO, length)
    places = np.concatenate([np.arange(*clip) for clip in clips])
    prompt[places] = AUDIO
    rows = rng.standard_normal((len(places), CONFIG.hidden_size), np.float32)
    return replace(request(prompt.tolist(), (1, 4), 24, **options), embedded=Embedded(places, rows))


REQUESTS = [
    spoken(0, 30, [(3, 15)]),
    spoken(1, 150, [(2, 40), (60, 149)], temperature=1.0, top_k=30, seed=4),
    request([5, 6, 7], (1, 4), 24),
    spoken(2, 9, [(0, 9)], repetition_penalty=1.3),
    spoken(3, 3, [(1, 2)]),
]


def run(engine: LanguageModelEngine, requests: Sequence[GenerationRequest], chunk: int) -> list[list[int]]:
    scheduler = Scheduler(engine, end_tokens=(), prefill_chunk=chunk)
    streams = [scheduler.submit(str(i), one) for i, one in enumerate(requests)]
    while not scheduler.idle:
        scheduler.step()
    return [stream.tokens[stream.prompt_tokens :] for stream in streams]


@pytest.mark.parametrize("chunk", [7, 32, 200])
def test_tokens_are_the_reference_s(chunk: int) -> None:
    """Clips cut anywhere, in steps of few rows, in groups and alone; also where the engine cuts a chunk again."""
    wanted = run(TorchLanguageModel(CONFIG, TENSORS, SLOTS, CONTEXT, embedded=True), REQUESTS, chunk)
    assert run(make(), REQUESTS, chunk) == wanted
    with mock.patch.object(engine_module, "MAX_STREAM_ROWS", 24):
        assert run(make(), REQUESTS, chunk) == wanted
    plain = [replace(one, embedded=None) for one in REQUESTS]
    assert all(a != b for a, b, one in zip(wanted, run(make(), plain, chunk), REQUESTS, strict=True) if one.embedded)


def test_a_head_that_is_the_embedding_draws_no_row_of_a_prompt() -> None:
    tied = replace(CONFIG, tie_word_embeddings=True)
    tensors = random_weights(tied)
    wanted = run(TorchLanguageModel(tied, tensors, SLOTS, CONTEXT, embedded=True), REQUESTS, 32)
    assert run(make(config=tied, tensors=tensors), REQUESTS, 32) == wanted


def test_programs_are_those_of_prompts_without_speech() -> None:
    """The set that is prepared stays closed, and nothing is added to any of its functions."""
    spoken_engine, plain_engine = make(), make(rows=0)
    assert spoken_engine.prepare(32) == plain_engine.prepare(32)
    prepared = set(spoken_engine.programs)
    run(spoken_engine, REQUESTS, 32)
    assert set(spoken_engine.programs) == prepared == set(plain_engine.programs)


def test_an_engine_of_a_base_checkpoint_takes_none() -> None:
    engine = make(rows=0)
    assert engine.embedded_size == 0
    engine.begin(0, Sampling())
    with pytest.raises(EngineError, match="this checkpoint reads speech as tokens"):
        engine.extend([ExtendRow(0, 0, [AUDIO], 0, Embedded(np.array([0]), np.zeros((1, 64), np.float32)))])


def test_more_rows_than_there_is_room_for() -> None:
    rows = PromptRows(torch.zeros(10 + 3, 4), 10)
    assert rows.put([np.ones((1, 4), np.float32), np.ones((2, 4), np.float32)]).tolist() == [10, 11, 12]
    with pytest.raises(EngineError, match="embedded: 4 rows in one call, the engine has room for 3"):
        rows.put([np.ones((4, 4), np.float32)])


@pytest.mark.parametrize(("slots", "chunk", "most"), [(1, 256, 512), (64, 256, 704), (2, 1000, 1000)])
def test_room_for_every_call(slots: int, chunk: int, most: int) -> None:
    """64 streams that all end their prompts with 11 rows of speech; a long chunk."""
    assert most_rows(Limits(slots, 10, 4096), chunk) == most


def test_rows_are_one_copy_to_the_device() -> None:
    with fake_cuda() as device:
        rows = PromptRows(torch.empty(10 + 8, 4, device=device), 10)
        with Dispatched(border=True) as log:
            rows.put([np.ones((1, 4), np.float32), np.ones((2, 4), np.float32)])
    assert log.copies == [("to device", (3, 4))]
