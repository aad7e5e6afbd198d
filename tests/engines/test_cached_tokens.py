"""Streams that continue on what a slot holds: in every engine, the tokens of a stream that read everything itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from language_models import ENGINES, make_engine, random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.cached_tokens import CachedTokens
from vita_audio.engines.interface import BurstRow, Embedded, ExtendRow, LanguageModelEngine, Sampling
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.stream import Stream

K = 4
CONFIG = LanguageModelConfig(120, 32, 48, 2 + K, 4, 2, K, 512)
TENSORS = random_weights(CONFIG)
SLOTS, CONTEXT, CHUNK = 3, 128, 24
PATTERNS = {"vanilla": (8192, 0), "balance": (1, 2, 3, 3, 2, 4), "boost": (1, K, 4, K), "turbo": (1, K), "odd": (2, 3)}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModelEngine]:
    folder = tmp_path_factory.mktemp("engines")
    return {kind: make_engine(kind, CONFIG, TENSORS, folder, SLOTS, CONTEXT) for kind in ENGINES}


def start(scheduler: Scheduler, wanted: GenerationRequest, keep: int) -> Stream:
    """Submit a stream to slot 0; its first `keep` tokens are cached there."""
    with mock.patch.object(scheduler.prefixes, "choose", return_value=(0, keep)):
        stream = scheduler.submit("", wanted)
    assert (stream.slot, stream.consumed) == (0, keep)
    assert 0 <= stream.cascaded <= max(0, keep - K)
    return stream


def finish(scheduler: Scheduler) -> None:
    while not scheduler.idle:
        scheduler.step()


tokens = st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=1, max_size=40)
patterns = st.sampled_from(list(PATTERNS.values()))
LONG, SHORT = list(range(40, 75)), [7, 3, 9]


@pytest.mark.parametrize("kind", ENGINES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=tokens,
    second=tokens,
    patterns=st.tuples(patterns, patterns),
    answer=st.integers(1, 20),
    kept=st.floats(0, 1),
    company=st.integers(0, 2),
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.sampled_from([0, 20]),
    penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**64 - 1),
)
@example(LONG, SHORT, (PATTERNS["turbo"],) * 2, 12, 1.0, 0, 0.0, 0, 1.05, 1)
@example(LONG, SHORT, (PATTERNS["turbo"],) * 2, 12, 0.8, 0, 1.0, 0, 1.05, 1)  # in the middle of a burst
@example(LONG, SHORT, (PATTERNS["vanilla"], PATTERNS["boost"]), 6, 1.0, 2, 1.0, 20, 1.3, 5)  # no cascade row is there
@example(SHORT, LONG, (PATTERNS["boost"], PATTERNS["vanilla"]), 9, 0.5, 2, 1.0, 20, 1.0, 5)
def test_continuing_equals_reading_everything(
    engines: dict[str, LanguageModelEngine],
    kind: str,
    first: list[int],
    second: list[int],
    patterns: tuple[tuple[int, ...], tuple[int, ...]],
    answer: int,
    kept: float,
    company: int,
    temperature: float,
    top_k: int,
    penalty: float,
    seed: int,
) -> None:
    """A stream reads A and answers; others run meanwhile; the next stream of its slot keeps any number of its tokens
    and reads B behind them."""
    engine = engines[kind]
    sampling = {"temperature": temperature, "top_k": top_k, "repetition_penalty": penalty, "seed": seed}
    scheduler = Scheduler(engine, (), CHUNK, reuse_prefixes=False)
    stream = scheduler.submit("", request(first, patterns[0], answer, **sampling))  # type: ignore[arg-type]
    finish(scheduler)
    assert stream.slot == 0
    keep = round(kept * stream.consumed)
    # Others step together in the slots beside it, in batches that span it, and end before it begins again.
    scheduler.prefixes.take(0, 0, 0)
    others = [scheduler.submit("", request([5 + i] * (3 + i), PATTERNS["vanilla"], 6)) for i in range(company)]
    finish(scheduler)
    assert all(other.slot != 0 for other in others)
    scheduler.prefixes.put(0, ())

    wanted = request([*stream.tokens[:keep], *second], patterns[1], 15, **sampling)  # type: ignore[arg-type]
    made = start(scheduler, wanted, keep)
    scheduler.submit("", request([9, 8], (1, K), 10))
    finish(scheduler)
    alone = scheduler.submit("", wanted)
    finish(scheduler)
    assert made.slot == 0
    assert made.tokens == alone.tokens


@pytest.mark.parametrize("kind", ENGINES)
def test_a_full_slot_keeps_all_but_its_last_row(engines: dict[str, LanguageModelEngine], kind: str) -> None:
    """A batch may park a stream that has filled its slot on the last row."""
    engine, scheduler = engines[kind], Scheduler(engines[kind], (), CHUNK, reuse_prefixes=False)
    prompt = [i % 90 for i in range(CONTEXT - 1)]
    engine.begin(0, Sampling())
    engine.begin(1, Sampling())
    for at in range(0, CONTEXT - 1, CHUNK):
        engine.extend([ExtendRow(0, at, prompt[at : at + CHUNK], None)])
    engine.extend([ExtendRow(0, CONTEXT - 1, [3], None), ExtendRow(1, 0, [4], 0)])
    engine.begin(2, Sampling())
    engine.extend([ExtendRow(1, 1, [5], 1), ExtendRow(2, 0, [5], 0)])
    for slot in range(SLOTS):
        engine.release(slot)
    with pytest.raises(EngineError, match=f"keep: {CONTEXT} is not valid: slot 0 holds {CONTEXT - 1} tokens"):
        engine.begin(0, Sampling(), CONTEXT)
    wanted = request([*prompt[:-9], 17], (1, K), 8)
    made = start(scheduler, wanted, CONTEXT - 10)
    finish(scheduler)
    alone = scheduler.submit("", wanted)
    finish(scheduler)
    assert made.tokens == alone.tokens


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda engine: engine.begin(0, Sampling()), "slot 0 is open already; release it first"),
        (lambda engine: engine.begin(1, Sampling(), 4), "keep: 4 is not valid: slot 1 holds 3 tokens; keep fewer"),
        (lambda engine: engine.begin(1, Sampling(), -1), "keep: -1 is not valid"),
        (lambda engine: engine.begin(2, Sampling(), 1), "slot 2 holds 0 tokens"),
        (lambda engine: engine.begin(SLOTS, Sampling()), f"slot: {SLOTS} is not valid: 0 to {SLOTS - 1}"),
        (lambda engine: engine.begin(-1, Sampling()), "slot: -1 is not valid"),
        (lambda engine: engine.release(1), "slot 1 is not open; begin a stream there first"),
        (lambda engine: engine.extend([ExtendRow(1, 0, [1, 2], None)]), "slot 1 is not open"),
        (lambda engine: engine.extend([ExtendRow(0, 3, [4], None)]), "3 cached positions are asked for, there are 2"),
        (
            lambda engine: engine.extend([ExtendRow(0, 2, [1] * CONTEXT, None)]),
            rf"positions \[2, {CONTEXT + 2}\) are not in \[0, context {CONTEXT}\)",
        ),
        (lambda engine: engine.burst([BurstRow(0, 0, 3, [2, 3, 4], K, 1)]), "there are 2; extend first"),
        (
            lambda engine: engine.extend(
                [ExtendRow(0, 2, [4], None, Embedded(np.array([0]), np.zeros((1, 32), "f4")))]
            ),
            "embeddings: this checkpoint reads speech as tokens and takes none",
        ),
    ],
)
def test_wrong_calls_are_refused(
    engines: dict[str, LanguageModelEngine], kind: str, call: Callable[[LanguageModelEngine], object], named: str
) -> None:
    engine = engines[kind]
    for slot, read in ((2, []), (1, [1, 2, 3]), (0, [1, 2])):
        engine.begin(slot, Sampling())
        if read:
            engine.extend([ExtendRow(slot, 0, read, None)])
        if slot:
            engine.release(slot)
    try:
        with pytest.raises(EngineError, match=named):
            call(engine)
        (made,) = engine.extend([ExtendRow(0, 2, [3], 0)])  # nothing has changed
    finally:
        engine.release(0)
    assert made is not None


@pytest.mark.parametrize("kind", ENGINES)
def test_burst_without_modules_is_an_error(kind: str, tmp_path: Path) -> None:
    config = LanguageModelConfig(64, 32, 64, 2, 2, 1, 0, 64)
    engine = make_engine(kind, config, random_weights(config), tmp_path, 1, 64)
    engine.begin(0, Sampling())
    with pytest.raises(EngineError, match="K = 0"):
        engine.burst([BurstRow(0, 0, 1, [1], 1, 0)])


def test_a_slot_that_could_not_begin_is_free(engines: dict[str, LanguageModelEngine]) -> None:
    engine = engines["torch"]
    with mock.patch.object(engine, "_begin", side_effect=MemoryError), pytest.raises(MemoryError):
        engine.begin(0, Sampling())
    engine.begin(0, Sampling())
    engine.release(0)


def test_a_failed_step_has_cached_nothing() -> None:
    cached = CachedTokens(1, 20, 2)
    cached.begin(0, 0)
    with cached.extend([ExtendRow(0, 0, [1, 2, 3, 4, 5, 6], None)]):
        pass
    with cached.burst([BurstRow(0, 0, 4, [2, 3, 4, 5, 6], 0, None)]):
        pass
    with pytest.raises(RuntimeError), cached.extend([ExtendRow(0, 5, [9, 9], None)]):
        raise RuntimeError("out of memory")
    assert cached.length(0) == 5
    with pytest.raises(RuntimeError), cached.burst([BurstRow(0, 1, 4, [3, 4, 5, 9], 0, None)]):
        raise RuntimeError("out of memory")
    cached.release(0)
    assert cached.begin(0, 5) == ([1, 2, 3, 4, 5], 1)


@given(
    bursts=st.lists(st.tuples(st.integers(1, 5), st.integers(0, K)), min_size=1, max_size=8),
    keep=st.integers(0, 60),
)
def test_cascade_rows_follow_the_rewind_rule(bursts: list[tuple[int, int]], keep: int) -> None:
    """Rows that stay valid have read tokens that were committed, and that are kept."""
    cached = CachedTokens(1, 200, K)
    cached.begin(0, 0)
    committed, consumed, valid = 1, 0, 0
    for backbone, commit in bursts:
        for _ in range(backbone):
            with cached.extend([ExtendRow(0, consumed, [1] * (committed - consumed), 0)]):
                pass
            consumed, committed = committed, committed + 1
        with cached.burst([BurstRow(0, valid, consumed, [1] * (consumed - valid), commit, 1)]):
            pass
        committed += commit
        valid = max(0, min(consumed, committed - 1 - K))
    cached.release(0)
    keep = min(keep, consumed)
    assert cached.begin(0, keep) == ([1] * keep, min(valid, max(0, keep - K)))
