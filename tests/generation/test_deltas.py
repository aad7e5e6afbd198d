"""When tokens leave: the waits of the deltas by the clock, what each stage's time is, and which draw a token gets."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import pytest

from generation_doubles import BOOST, TURBO, VANILLA, CountingEngine, Receiver, drive, request
from vita_audio.contract.messages import Delta
from vita_audio.engines.interface import BurstRow, ExtendRow
from vita_audio.generation import service
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.service import GenerationService


class Clock:
    """Seconds that pass only where a test says so; it begins away from 0, as a real one does."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


class TimedEngine(CountingEngine):
    """Each backbone step takes `step_s` of the clock."""

    def __init__(self, clock: Clock, step_s: float, slots: int = 1) -> None:
        super().__init__(slots)
        self.clock, self.step_s = clock, step_s

    def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        self.clock.now += self.step_s
        return super().extend(rows)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(service, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("step_ms", "sizes"),
    [
        (0.25, [1, 8, 8, 80, 80, 80, 43]),  # from the fourth on, the shortest gap: 20 ms
        (2.0, [1, 8, 8, 10, 10, 10, 10, 10, 10, 10, 10, 3]),
        (4.0, [1, *[8] * 12, 3]),  # 8 tokens have gathered before the longest wait
        (8.0, [1, *[5] * 19, 4]),  # the longest wait: 40 ms
        (50.0, [1] * 20),
    ],
)
def test_tokens_leave_by_number_and_by_the_clock(clock: Clock, step_ms: float, sizes: list[int]) -> None:
    engine = TimedEngine(clock, step_ms / 1e3 + 1e-9)  # a step is not a hair short of its time
    generation, receive = GenerationService(engine, ()), Receiver()
    generation.submit("s", request([5] * 5, VANILLA, sum(sizes)), receive)
    receive.wait()
    generation.close()
    assert [len(delta.tokens) for delta in receive.deltas] == sizes


def test_the_time_in_the_queue_and_the_time_of_the_tokens(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, go_on = TimedEngine(clock, 0.5), threading.Event()
    extend = engine.extend

    def gated(rows: Sequence[ExtendRow]) -> list[int | None]:
        assert go_on.wait(20)
        return extend(rows)

    monkeypatch.setattr(engine, "extend", gated)
    generation = GenerationService(engine, ())
    receivers = [Receiver(), Receiver()]
    for number, receive in enumerate(receivers):
        generation.submit(str(number), request([5] * 5, VANILLA, 4), receive)
    go_on.set()
    for receive in receivers:
        receive.wait()
    generation.close()
    timings = [receive.deltas[-1].status.timings_ms for receive in receivers]
    assert [(each["lm_queue"], each["lm"]) for each in timings] == [(0, 2000), (2000, 2000)]
    assert receivers[0].deltas[0].status.timings_ms["lm"] == 500
    assert generation.stats().busy_ms == 4000
    assert generation.stats().steps == 8


def test_a_delta_carries_what_its_request_says() -> None:
    generation, receive = GenerationService(CountingEngine(), ()), Receiver()
    asked = request([5] * 5, BOOST, 12, seed=77)
    asked.settings.timings_ms.update(prompt=1.5)
    generation.submit("s", asked, receive)
    last = receive.wait()
    generation.close()
    assert (last.stream, last.task, last.mode, last.seed, last.code) == ("s", "chat", "test", 77, "")
    assert last.timings_ms["prompt"] == 1.5
    assert receive.deltas[0].status.state == "running"


def test_settings_of_a_request_reach_the_engine() -> None:
    engine = CountingEngine()
    Scheduler(engine, ()).submit("s", request([5], BOOST, 9, 0.5, 7, 0.75, 1.25, 3))
    sampling = engine.opened[0]
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty, sampling.seed) == (
        0.5, 7, 0.75, 1.25, 3,
    )  # fmt: skip


@pytest.mark.parametrize(("asked", "temperature"), [(1e-40, 0.0), (9e-5, 0.0), (1e-4, 1e-4), (0.0, 0.0)])
def test_a_temperature_next_to_zero_is_zero(asked: float, temperature: float) -> None:
    """Its inverse is beyond float32, and a softmax of such logits has no number in it."""
    engine = CountingEngine()
    Scheduler(engine, ()).submit("s", request([5], BOOST, 9, asked))
    assert engine.opened[0].temperature == temperature


@pytest.mark.parametrize("prompt", [1, 5, 40, 150])
@pytest.mark.parametrize("pattern", [BOOST, VANILLA, TURBO, (2, 3, 1, 7)])
def test_every_token_has_a_draw_of_its_own(prompt: int, pattern: tuple[int, ...]) -> None:
    """Draw i makes the i-th token of the answer, whichever part of the model samples it; a prompt draws none."""
    engine = CountingEngine(slots=1)
    scheduler = Scheduler(engine, (), prefill_chunk=16)
    scheduler.submit("s", request([5] * prompt, pattern, 50))
    drive(scheduler)
    draws: list[int] = []
    for row in itertools.chain.from_iterable(engine.calls):
        if isinstance(row, BurstRow) and row.index is not None:
            draws += range(row.index, row.index + row.commit)
        elif isinstance(row, ExtendRow) and row.index is not None:
            draws.append(row.index)
    assert draws == list(range(50))


def test_a_long_reason_of_a_failure_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CountingEngine()

    def extend(rows: Sequence[ExtendRow]) -> list[int | None]:
        raise RuntimeError("x" * 5000)

    monkeypatch.setattr(engine, "extend", extend)
    generation, receive = GenerationService(engine, ()), Receiver()
    generation.submit("s", request([5], BOOST, 20), receive)
    assert receive.wait().reason == f"language model failed: RuntimeError: {'x' * 5000}"[:1000]
    generation.close()


def test_a_receiver_may_ask_for_the_end_of_its_own_stream() -> None:
    generation, receive = GenerationService(CountingEngine(), ()), Receiver()

    def cancel(delta: Delta) -> None:
        receive(delta)
        generation.cancel("s")

    generation.submit("s", request([5], VANILLA, 1000), cancel)
    assert receive.wait().state == "cancelled"
    assert generation.stats().finished == {"cancelled": 1}
    generation.close()
