"""Slots that ended keep what they read: the next turn goes on there, as if its prompt were read from the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from language_models import ENGINES, make_engine, random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.contract.messages import State
from vita_audio.engines.interface import ExtendRow, LanguageModelEngine, Sampling
from vita_audio.generation.prefix_cache import WORTH_TOKENS, PrefixCache, PrefixStats
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.stream import Stream

CONFIG = LanguageModelConfig(120, 48, 64, 2 + 4, 4, 2, 4, 512)
TENSORS = random_weights(CONFIG)
PATTERNS = ((8192, 0), (1, 4), (1, 4, 3, 2))
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "top_k": 20, "seed": 3},
    {"repetition_penalty": 1.4},
)
LONG = list(range(100))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[LanguageModelEngine]]:
    """Two of each kind: schedulers of one engine would not see what the other leaves in its slots."""
    folder = tmp_path_factory.mktemp("engines")
    return {kind: [make_engine(kind, CONFIG, TENSORS, folder, 3, 256) for _ in range(2)] for kind in ENGINES}


def taken(cache: PrefixCache, prompt: Sequence[int]) -> tuple[int, int]:
    slot, keep = cache.choose(prompt)
    cache.take(slot, len(prompt), keep)
    return slot, keep


def test_empty_slots_are_taken_from_the_lowest_on() -> None:
    cache = PrefixCache(3)
    assert [taken(cache, LONG) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert not cache
    for slot in (2, 0, 1):
        cache.put(slot, ())
    assert [taken(cache, LONG) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]


def test_a_prompt_goes_on_where_it_began_and_one_token_is_always_left_to_read() -> None:
    cache = PrefixCache(2)
    for slot in (0, 1):
        taken(cache, LONG)
        cache.put(slot, LONG if slot else [7] * 100)
    assert cache.choose([*LONG, 5, 6]) == (1, 100)
    assert cache.choose(LONG) == (1, 99)
    assert cache.choose([*LONG[:60], 99]) == (1, 60)
    assert cache.choose([5]) == (0, 0)


def test_a_few_equal_tokens_do_not_end_the_conversation_that_was_last_active() -> None:
    cache = PrefixCache(2)
    for _ in range(2):
        taken(cache, LONG)
    cache.put(1, [7] * 100)
    cache.put(0, LONG)
    assert cache.choose([*LONG[: WORTH_TOKENS - 1], 3, 3]) == (1, 0)
    assert cache.choose([*LONG[:WORTH_TOKENS], 3, 3]) == (0, WORTH_TOKENS)
    cache.forget(0)
    assert cache.choose([*LONG, 3]) == (0, 0)  # empty ones first


def test_what_was_found_and_given_up_is_counted() -> None:
    cache = PrefixCache(1)
    taken(cache, LONG)
    cache.put(0, LONG)
    taken(cache, [*LONG[:40], 3, 3])
    cache.put(0, LONG[:40])
    taken(cache, [9, 9])
    assert cache.stats == PrefixStats(prompts=3, hits=1, prompt_tokens=144, reused=40, evicted=60 + 40)
    cache.put(0, LONG)
    cache.reset()
    assert (cache.stats, cache.choose([*LONG, 3])) == (PrefixStats(), (0, 0))


def test_without_reuse_every_prompt_is_read_from_its_beginning() -> None:
    cache = PrefixCache(1, reuse=False)
    taken(cache, LONG)
    cache.put(0, LONG)
    assert cache.choose([*LONG, 1]) == (0, 0)


def finish(scheduler: Scheduler, streams: Sequence[Stream]) -> list[list[int]]:
    while not scheduler.idle:
        scheduler.step()
    return [stream.tokens[stream.prompt_tokens :] for stream in streams]


def conversation_steps(data: st.DataObject, histories: list[list[int]]) -> list[tuple[int, GenerationRequest]]:
    """The next turns of some conversations: (its number, the request)."""
    token = st.integers(0, CONFIG.vocab_size - 1)
    steps = []
    for number, history in enumerate(histories):
        turn = data.draw(st.lists(token, min_size=1, max_size=12))
        sampling = data.draw(st.sampled_from(SAMPLINGS))
        if len(history) + len(turn) < 200 and data.draw(st.booleans()):
            pattern, most = data.draw(st.sampled_from(PATTERNS)), data.draw(st.integers(1, 12))
            steps.append((number, request([*history, *turn], pattern, most, **sampling)))
    return steps


@pytest.mark.parametrize("kind", ENGINES)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_tokens_are_those_of_a_prompt_read_from_its_beginning(
    engines: dict[str, list[LanguageModelEngine]], kind: str, data: st.DataObject
) -> None:
    """Conversations that go on, are cut short, begin alike and share slots, in any order, greedy and sampled."""
    cached, plain = (
        Scheduler(engine, (), 16, reuse) for engine, reuse in zip(engines[kind], (True, False), strict=True)
    )
    histories = [[1] * 40, [1] * 38 + [2] * 4, [], [3] * 50]
    for _ in range(data.draw(st.integers(2, 3))):
        steps = conversation_steps(data, histories)
        delay, streams = data.draw(st.integers(0, 3)), []
        for _, one in steps:
            streams.append(cached.submit("x", one))
            for _ in range(delay):
                cached.step()
        answers = finish(cached, streams)
        assert answers == finish(plain, [plain.submit("x", one) for _, one in steps])
        for (number, one), answer in zip(steps, answers, strict=True):
            histories[number] = [*one.prompt, *answer[: data.draw(st.integers(0, len(answer)))]]
    assert not plain.prefixes.stats.reused


class Recorded:
    """An engine, and the rows that its backbone was asked to run."""

    def __init__(self, engine: LanguageModelEngine) -> None:
        self._engine, self.rows, self.broken = engine, list[ExtendRow](), False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        if self.broken:
            raise EngineError("broken")
        self.rows += rows
        return self._engine.extend(rows)


def test_a_turn_reads_only_what_is_new(engines: dict[str, list[LanguageModelEngine]]) -> None:
    engine = Recorded(engines["torch"][0])
    scheduler = Scheduler(engine, (), 16)
    history = LONG
    for turn in range(3):
        engine.rows.clear()
        prompt = [*history, 5, 6, 7]
        history = [*prompt, *finish(scheduler, [scheduler.submit("x", request(prompt, (1, 4), 10))])[0]]
        read = [(row.start, row.start + len(row.tokens)) for row in engine.rows]
        # The last tokens of a burst have not been through the backbone.
        assert read[0][0] == (0 if turn == 0 else pytest.approx(len(prompt) - 3, abs=5))
        assert [start for start, _ in read[1:]] == [stop for _, stop in read[:-1]]
    stats = scheduler.prefixes.stats
    assert (stats.prompts, stats.hits) == (3, 2)
    assert stats.prompt_tokens - stats.reused < len(LONG) + 3 * 10


def test_a_cancelled_stream_leaves_its_slot_to_the_next_turn_and_a_failed_one_does_not(
    engines: dict[str, list[LanguageModelEngine]],
) -> None:
    engine = Recorded(engines["torch"][0])
    scheduler = Scheduler(engine, (), 16)
    ends: tuple[tuple[State, int], ...] = (("cancelled", 80), ("failed", 0))
    for state, reused in ends:
        stream = scheduler.submit("x", request(LONG, (1, 4), 50))
        for _ in range(8):
            scheduler.step()
        assert stream.consumed >= 80
        scheduler.end(stream, state, "")
        _, keep = scheduler.prefixes.choose([*LONG, 3])
        assert keep >= reused if reused else keep == 0


def test_a_slot_that_cannot_begin_is_forgotten(
    engines: dict[str, list[LanguageModelEngine]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines["torch"][0]
    scheduler = Scheduler(engine, (), 16)
    finish(scheduler, [scheduler.submit("x", request(LONG, (1, 4), 4))])
    begin = engine.begin

    def fails(slot: int, sampling: Sampling, keep: int = 0) -> int:
        if keep:
            raise EngineError("broken")
        return begin(slot, sampling, keep)

    monkeypatch.setattr(engine, "begin", fails)
    refused = scheduler.submit("x", request([*LONG, 3], (1, 4), 4))
    assert refused.state == "failed"
    assert scheduler.take_refused() == [refused]
    assert len(finish(scheduler, [scheduler.submit("x", request([*LONG, 3], (1, 4), 4))])[0]) == 4


@pytest.mark.parametrize("kind", ENGINES)
def test_what_was_read_ahead_is_not_read_again(engines: dict[str, list[LanguageModelEngine]], kind: str) -> None:
    """A turn that grows is read as it comes, by the cascade too; the answer is that of the whole prompt."""
    engine = Recorded(engines[kind][0])
    scheduler = Scheduler(engine, (), 16)
    expected = finish(scheduler, [scheduler.submit("x", request([*LONG, 5], (1, 4), 12))])[0]
    scheduler = Scheduler(engine, (), 16)
    for length in (3, 40, 90):
        stream = scheduler.submit("x", request(LONG[:length], (1, 4), 12, read_only=1))
        assert finish(scheduler, [stream]) == [[]]
        assert (stream.state, stream.reason, stream.consumed) == ("done", "read", length)
        assert stream.cascaded == max(0, length - CONFIG.mctp_modules)
    engine.rows.clear()
    answer = scheduler.submit("x", request([*LONG, 5], (1, 4), 12))
    assert finish(scheduler, [answer]) == [expected]
    assert (answer.cached, engine.rows[0].start) == (90, 90)
    assert scheduler.prefixes.stats.reused == 40 + 90  # 3 are not worth a slot
