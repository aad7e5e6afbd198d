"""Scheduler bounds and the generation thread: admission, order, cancel, failures, nobody left waiting."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation_doubles import BOOST, TURBO, VANILLA, CountingEngine, Receiver, drive
from language_models import make_engine, random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import InvalidRequest, ServerStopping
from vita_audio.engines.interface import ExtendRow, LanguageModelEngine, Sampling
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.service import GenerationService

CONFIG = LanguageModelConfig(300, 32, 48, 2 + 10, 2, 1, 10, 512)


@given(
    prompts=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    pattern=st.sampled_from([BOOST, VANILLA, TURBO, (1, 4, 3, 8, 4, 10), (5, 0, 1, 10), (40, 0, 2, 3)]),
    chunk=st.integers(11, 80),
    max_tokens=st.integers(1, 120),
)
def test_scheduler_runs_every_token_once_and_bounds_every_step(
    prompts: list[int], pattern: tuple[int, ...], chunk: int, max_tokens: int
) -> None:
    engine = CountingEngine(slots=3)
    scheduler = Scheduler(engine, (), prefill_chunk=chunk)
    streams = [scheduler.submit(str(n), request([5] * n, pattern, max_tokens)) for n in prompts]
    while not scheduler.idle:
        before = len(engine.calls)
        scheduler.step()
        prompt_rows = cascade_rows = 0
        for rows in engine.calls[before:]:
            for row in rows:
                if isinstance(row, ExtendRow):
                    prompt_rows += len(row.tokens) if len(row.tokens) > 11 else 0
                elif row.index is None:
                    cascade_rows += row.stop - row.start
                else:
                    assert row.stop - row.start <= chunk
        assert prompt_rows <= chunk
        assert cascade_rows <= chunk
    for stream in streams:
        # In the double, token = 10 + position: a position that was skipped or run twice would show.
        n = stream.prompt_tokens
        assert stream.tokens[n:] == [10 + n + i for i in range(max_tokens)]
        assert (stream.state, stream.reason) == ("done", "max_tokens")
    assert engine.opened == {}


@pytest.mark.parametrize("end_at", [5, 6, 9, 16, 17, 30])
def test_end_token_inside_a_burst_cuts_it(end_at: int) -> None:
    scheduler = Scheduler(CountingEngine(end_at=end_at), end_tokens=(1,))
    stream = scheduler.submit("a", request([5] * 5, BOOST, 200))
    drive(scheduler)
    assert stream.tokens[-1] == 1
    assert stream.generated == end_at - 5 + 1
    assert stream.reason == "end_token"


def test_context_limit_ends_a_stream() -> None:
    scheduler = Scheduler(CountingEngine(context=64), ())
    stream = scheduler.submit("a", request([5] * 40, BOOST, 1000))
    drive(scheduler)
    assert len(stream.tokens) == 64
    assert stream.reason == "context_limit"


def test_context_limit_on_the_real_engine(tmp_path: Path) -> None:
    engine = make_engine("onnxruntime", CONFIG, random_weights(CONFIG), tmp_path, slots=2, context=48)
    scheduler = Scheduler(engine, ())
    streams = [scheduler.submit(str(p), request([5] * 30, p, 1000)) for p in (BOOST, VANILLA)]
    drive(scheduler)
    assert [len(s.tokens) for s in streams] == [48, 48]


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (request([], BOOST), "PROMPT_IDS"),
        (request([5] * 2000, BOOST), "1999"),
        (request([100_000], BOOST), "PROMPT_IDS"),
        (request([5], (1, 11)), "10 MCTP modules"),
    ],
)
def test_requests_that_can_never_run_are_refused(bad: GenerationRequest, names: str) -> None:
    with pytest.raises(InvalidRequest, match=names):
        Scheduler(CountingEngine(), ()).check(bad)


class Unopenable(CountingEngine):
    """Opens some streams only."""

    def __init__(self, opens: set[int], slots: int) -> None:
        super().__init__(slots)
        self.opens, self.asked = opens, 0

    def begin(self, slot: int, sampling: Sampling, keep: int = 0) -> int:
        self.asked += 1
        if self.asked not in self.opens:
            raise MemoryError("no blocks left")
        return super().begin(slot, sampling, keep)


def submit(service: GenerationService, generation: GenerationRequest, receive: Receiver) -> str:
    """Start a stream under an id of its own."""
    stream_id = f"s{next(IDS)}"
    service.submit(stream_id, generation, receive)
    return stream_id


IDS = itertools.count()


@pytest.fixture(scope="module")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelEngine:
    folder = tmp_path_factory.mktemp("engine")
    return make_engine("onnxruntime", CONFIG, random_weights(CONFIG), folder, slots=3, context=256)


def test_streams_come_in_order_and_equal_their_single_runs(real_engine: LanguageModelEngine) -> None:
    requests = [request([i + 1] * (7 * i + 1), p, 60, seed=i) for i, p in enumerate([BOOST, VANILLA, TURBO] * 3)]
    expected = []
    for r in requests:
        scheduler = Scheduler(real_engine, ())
        stream = scheduler.submit("alone", r)
        drive(scheduler)
        expected.append(stream.tokens[stream.prompt_tokens :])
    service = GenerationService(real_engine, ())
    receivers = [Receiver() for _ in requests]
    ids = [submit(service, r, receive) for r, receive in zip(requests, receivers, strict=True)]
    assert len(set(ids)) == len(ids)
    assert all(receive.wait().state == "done" for receive in receivers)
    assert [receive.tokens for receive in receivers] == expected
    timings = receivers[0].deltas[-1].status.timings_ms
    assert {"lm", "lm_queue"} <= timings.keys()
    service.close()
    stats = service.stats()
    assert (stats.running, stats.waiting, stats.finished) == (0, 0, {"max_tokens": len(requests)})
    assert stats.tokens == 60 * len(requests)


def test_streams_beyond_the_slots_wait_their_turn() -> None:
    gate = threading.Event()

    class Slow(CountingEngine):
        def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
            gate.wait(20)
            return super().extend(rows)

    service = GenerationService(Slow(slots=2), ())
    receivers = [Receiver() for _ in range(3)]
    for receive in receivers:
        submit(service, request([5], BOOST, 20), receive)
    stats = service.stats()
    assert (stats.running, stats.waiting) == (2, 1)
    gate.set()
    for receive in receivers:
        assert receive.wait().reason == "max_tokens"
    service.close()


def test_cancel_running_waiting_and_unknown(real_engine: LanguageModelEngine) -> None:
    service = GenerationService(real_engine, ())
    receivers = [Receiver() for _ in range(6)]
    ids = [submit(service, request([5], VANILLA, 250), r) for r in receivers]
    assert all(service.cancel(i) for i in ids)
    for receive in receivers:
        last = receive.wait()
        assert (last.state, last.reason, last.code) == ("cancelled", "cancelled", "cancelled")
    assert not service.cancel(ids[0])
    assert not service.cancel("nobody")
    assert service.stats().running == 0
    service.close()


def test_engine_failure_fails_its_streams_only() -> None:
    engine = CountingEngine(slots=1)
    service = GenerationService(engine, ())
    engine.fail_on = {0}
    broken = Receiver()
    submit(service, request([5], BOOST, 20), broken)
    last = broken.wait()
    assert (last.state, "engine broke" in last.reason, last.code) == ("failed", True, "engine_error")
    engine.fail_on = set()
    fine = Receiver()
    submit(service, request([5], BOOST, 20), fine)
    assert fine.wait().state == "done"
    service.close()
    assert engine.opened == {}


def test_receiver_that_raises_is_cancelled(real_engine: LanguageModelEngine) -> None:
    service = GenerationService(real_engine, ())
    gone, fine = Receiver(fail_after=1), Receiver()
    submit(service, request([5], BOOST, 250), gone)
    submit(service, request([6], BOOST, 100), fine)
    assert fine.wait().state == "done"
    assert gone.wait().state == "cancelled"
    service.close()


def test_close_cancels(real_engine: LanguageModelEngine) -> None:
    service = GenerationService(real_engine, ())
    long = Receiver()
    submit(service, request([5], VANILLA, 250), long)
    service.close()
    assert long.wait().state == "cancelled"
    with pytest.raises(ServerStopping):
        submit(service, request([5], BOOST, 30), Receiver())


def test_random_cancels_leave_nothing_behind(real_engine: LanguageModelEngine) -> None:
    service = GenerationService(real_engine, ())
    receivers = [Receiver() for _ in range(60)]
    ids = [submit(service, request([i + 1], BOOST, 5 + i), r) for i, r in enumerate(receivers)]
    for i, stream_id in enumerate(ids):
        if i % 3:
            service.cancel(stream_id)
            time.sleep(0.001 * (i % 4))
    states = [r.wait().state for r in receivers]
    assert {"done", "cancelled"} == set(states)
    service.close()
    assert (service.stats().running, service.stats().waiting) == (0, 0)


@settings(max_examples=5, deadline=None)
@given(fail_after=st.integers(0, 3))
def test_first_delta_carries_the_first_burst(real_engine: LanguageModelEngine, fail_after: int) -> None:
    service = GenerationService(real_engine, ())
    receive = Receiver()
    submit(service, request([5] * (1 + fail_after), BOOST, 40), receive)
    receive.wait()
    service.close()
    assert len(receive.deltas[0].tokens) == 11


@pytest.mark.parametrize("opens", [set(), {1}, {2, 5}, {1, 2, 3, 4, 5}])
def test_a_stream_that_cannot_be_opened_fails_alone(opens: set[int]) -> None:
    engine = Unopenable(opens, slots=1)
    service = GenerationService(engine, ())
    receivers = [Receiver() for _ in range(5)]
    for receiver in receivers:
        submit(service, request([5] * 5, BOOST, 30), receiver)
    last = [receiver.wait() for receiver in receivers]
    assert {number for number, delta in enumerate(last, 1) if delta.state == "done"} == opens
    assert all("no blocks left" in delta.reason for delta in last if delta.state == "failed")
    later = Receiver()
    engine.opens = {6}
    submit(service, request([5] * 5, BOOST, 30), later)
    assert later.wait().state == "done"
    service.close()
    assert engine.opened == {}
    assert service.stats().running == service.stats().waiting == 0


def test_a_stream_that_is_cancelled_and_cannot_be_opened_ends_once() -> None:
    engine = Unopenable({1}, slots=3)
    inside, go_on = threading.Event(), threading.Event()

    def wait(rows: Sequence[ExtendRow], extend=engine.extend) -> list[int | None]:  # type: ignore[no-untyped-def]
        inside.set()
        assert go_on.wait(20)
        return extend(rows)

    engine.extend = wait  # type: ignore[method-assign]
    service = GenerationService(engine, ())
    first, second = Receiver(), Receiver()
    submit(service, request([5] * 5, BOOST, 30), first)
    assert inside.wait(20)
    service.cancel(submit(service, request([5] * 5, BOOST, 30), second))  # both reach the thread together
    go_on.set()
    assert first.wait().state == "done"
    assert second.wait().final
    service.close()
