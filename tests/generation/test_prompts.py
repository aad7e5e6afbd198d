"""How prompts are read: short ones together in a step, no more than a chunk of them, the same tokens in any company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language_models import random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.interface import BurstRow, ExtendRow
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.generation.scheduler import Scheduler

CONFIG = LanguageModelConfig(60, 16, 24, 1 + 2, 2, 1, 2, 256)
TENSORS = random_weights(CONFIG)
CHUNK = 24


class Counting(TorchLanguageModel):
    """The reference, noting the rows of every call."""

    def __init__(self, slots: int) -> None:
        super().__init__(CONFIG, TENSORS, slots, 256)
        self.extended: list[list[ExtendRow]] = []
        self.bursts: list[list[BurstRow]] = []

    def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        self.extended.append(list(rows))
        return super().extend(rows)

    def burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        self.bursts.append(list(rows))
        return super().burst(rows)


def test_short_prompts_are_read_in_one_step() -> None:
    engine = Counting(4)
    scheduler = Scheduler(engine, (), CHUNK)
    streams = [scheduler.submit(str(i), request(list(range(6)), (1, 2), 5)) for i in range(4)]
    scheduler.step()
    assert [len(row.tokens) for row in engine.extended[0]] == [6, 6, 6, 6]
    assert [row.stop - row.start for row in engine.bursts[0]] == [6, 6, 6, 6]
    assert [stream.generated for stream in streams] == [3, 3, 3, 3]


def test_the_cascade_reads_no_prompt_of_a_stream_that_does_without_it() -> None:
    engine = Counting(1)
    scheduler = Scheduler(engine, (), CHUNK)
    scheduler.submit("vanilla", request(list(range(6)) * 20, (8192, 0), 5))
    while not scheduler.idle:
        scheduler.step()
    assert engine.bursts == []


def test_a_long_prompt_is_read_alone_and_in_its_turn() -> None:
    """Chunks of 24 of a prompt of 40; the next prompt begins with the rest of the first, and none overtakes it."""
    engine = Counting(3)
    scheduler = Scheduler(engine, (), CHUNK)
    for length in (40, 20, 3):
        scheduler.submit(str(length), request(list(range(length)), (8192, 0), 1))
    steps = []
    while not scheduler.idle:
        scheduler.step()
        steps.append([(row.slot, len(row.tokens)) for row in engine.extended[-1]])
    assert steps == [[(0, 24)], [(0, 16)], [(1, 20), (2, 3)]]


@settings(max_examples=30, deadline=None)
@given(
    loads=st.lists(
        st.tuples(st.integers(1, 90), st.sampled_from([*NAMED_MODES, "odd"]), st.integers(0, 4)), min_size=1, max_size=8
    )
)
def test_no_step_reads_more_than_a_chunk(loads: list[tuple[int, str, int]]) -> None:
    """Prompts of any length and mode that come at any time: rows of prompts in a call, and tokens as if alone."""
    patterns = {"vanilla": (8192, 0), "balance": (1, 1, 2, 2), "boost": (1, 2, 3, 2), "turbo": (1, 2), "odd": (2, 1)}
    engine = Counting(4)
    scheduler = Scheduler(engine, (), CHUNK)
    streams = []
    for number, (length, mode, delay) in enumerate(loads):
        streams.append(
            scheduler.submit(str(number), request([number] * length, patterns[mode], 7, temperature=1.0, seed=number))
        )
        for _ in range(delay):
            scheduler.step()
    while not scheduler.idle:
        scheduler.step()
    decode = CONFIG.mctp_modules + 1
    for extends in engine.extended:
        prompts = [len(row.tokens) for row in extends if len(row.tokens) > decode]
        assert sum(prompts) <= CHUNK
    for bursts in engine.bursts:
        chunks = [row.stop - row.start for row in bursts if row.index is None]
        assert sum(chunks) <= CHUNK
    for number, (stream, (length, mode, _)) in enumerate(zip(streams, loads, strict=True)):
        alone = Scheduler(TorchLanguageModel(CONFIG, TENSORS, 1, 256), (), CHUNK)
        expected = alone.submit("", request([number] * length, patterns[mode], 7, temperature=1.0, seed=number))
        while not alone.idle:
            alone.step()
        assert stream.tokens == expected.tokens


@pytest.mark.parametrize("pattern", [(1, 2), (8192, 0)])
def test_a_prompt_that_does_not_fit_the_step_waits_for_the_next(pattern: tuple[int, ...]) -> None:
    engine = Counting(4)
    scheduler = Scheduler(engine, (), CHUNK)
    for length in (10, 10, 10, 4):
        scheduler.submit("x", request(list(range(length)), pattern, 20))
    scheduler.step()
    assert [row.slot for row in engine.extended[0]] == [0, 1]  # the short fourth does not overtake the third
