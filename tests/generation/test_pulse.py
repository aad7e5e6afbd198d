"""The generation thread shows that it turns, and reports its end after those of its streams."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import NoReturn

import pytest

from language_models import request
from pulses import RecordedPulse
from vita_audio.contract.errors import ServerUnhealthy
from vita_audio.contract.messages import Delta
from vita_audio.generation import scheduler
from vita_audio.generation import service as module
from vita_audio.generation.service import GenerationService
from waiting import until


class SlowEngine:
    """Tokens are positions; a step waits for the gate."""

    slots, mctp_modules, vocab_size, context, embedded_size = 2, 0, 1000, 500, 0

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def begin(self, slot: int, sampling: object, keep: int = 0) -> int:
        return 0

    def release(self, slot: int) -> None: ...

    def extend(self, rows: list) -> list[int | None]:
        assert self.gate.wait(20)
        return [None if row.index is None else row.start + len(row.tokens) for row in rows]


def make(monkeypatch: pytest.MonkeyPatch) -> tuple[SlowEngine, RecordedPulse, GenerationService]:
    monkeypatch.setattr(module, "IDLE_TURN_S", 0.01)
    engine, pulse = SlowEngine(), RecordedPulse()
    return engine, pulse, GenerationService(engine, (), pulse=pulse)  # type: ignore[arg-type]


def test_an_idle_thread_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pulse, service = make(monkeypatch)
    until(lambda: pulse.beats > 5)
    assert pulse.calls == 0
    service.close()
    assert not pulse.ended.is_set()


def test_a_busy_thread_beats_before_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pulse, service = make(monkeypatch)
    monkeypatch.setattr(module, "IDLE_TURN_S", 3600.0)  # from here on the loop does not turn without work
    ended = threading.Event()
    service.ping(ended.set)
    assert ended.wait(10)
    idle_beats, ended = pulse.beats, threading.Event()
    service.submit("s", request([5], (8192, 0), 50), lambda delta: delta.status.final and ended.set())
    assert ended.wait(10)
    assert pulse.calls >= 50
    assert pulse.beats >= idle_beats + pulse.calls
    service.close()


def test_an_engine_step_is_a_call_and_a_ping_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, pulse, service = make(monkeypatch)
    engine.gate.clear()
    service.submit("s", request([5] * 3, (8192, 0), 20), lambda delta: None)
    assert pulse.inside.wait(10)
    answered = threading.Event()
    service.ping(answered.set)
    beats = pulse.beats
    assert not answered.wait(0.05)
    assert pulse.beats == beats
    engine.gate.set()
    assert answered.wait(10)
    assert service.stats().waiting == 0
    service.close()


def test_a_ping_of_an_idle_thread_is_answered_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, service = make(monkeypatch)
    answered = threading.Event()
    service.ping(answered.set)
    assert answered.wait(10)
    assert (service.stats().running, service.stats().tokens) == (0, 0)
    service.close()


def test_one_that_cannot_be_answered_is_no_fault_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pulse, service = make(monkeypatch)

    def gone() -> None:
        raise RuntimeError("the asker is gone")

    service.ping(gone)
    answered = threading.Event()
    service.ping(answered.set)
    assert answered.wait(10)
    service.close()
    assert not pulse.ended.is_set()


def test_a_broken_loop_ends_its_streams_first_and_then_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, pulse, service = make(monkeypatch)
    engine.gate.clear()
    last: list[tuple[str, str, bool]] = []

    def emit(delta: Delta) -> None:
        if delta.status.final:
            last.append((delta.status.state, delta.status.code, pulse.ended.is_set()))

    service.submit("s", request([5] * 3, (8192, 0), 20), emit)
    assert pulse.inside.wait(10)

    def fail(live: object) -> None:
        raise AssertionError("a bug of the loop")

    monkeypatch.setattr(service, "_hand_out", fail)
    engine.gate.set()
    assert pulse.ended.wait(10)
    assert last == [("failed", "unhealthy", False)]
    with pytest.raises(ServerUnhealthy, match="starts again by itself"):
        service.submit("t", request([5], (8192, 0), 5), emit)


def test_the_thread_enters_before_its_first_turn() -> None:
    pulse, entered = RecordedPulse(), list[tuple[str, int]]()
    service = GenerationService(
        SlowEngine(),  # type: ignore[arg-type]
        (),
        pulse=pulse,
        enter=lambda: entered.append((threading.current_thread().name, pulse.beats)),
    )
    until(lambda: pulse.beats)
    service.close()
    assert entered == [("generation", 0)]


@pytest.mark.parametrize(("call", "asks"), [("extend", module), ("begin", scheduler)])
def test_a_lost_gpu_ends_the_process_and_a_call_that_failed_does_not(
    call: str, asks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GPU that is lost while no stream runs, the next stream's `begin` is the first call that fails."""
    engine, pulse, service = make(monkeypatch)
    last: list[tuple[str, str]] = []

    def emit(delta: Delta) -> None:
        if delta.status.final:
            last.append((delta.status.state, delta.status.code))

    def fault(*_: object) -> NoReturn:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(engine, call, fault)
    for lost, code in ((False, "engine_error"), (True, "unhealthy")):
        monkeypatch.setattr(asks, "gpu_is_lost", lambda error, lost=lost: lost)
        service.submit(f"s{lost}", request([5] * 3, (8192, 0), 20), emit)
        until(lambda: last)
        assert last.pop() == ("failed", code)
        assert pulse.ended.wait(10 if lost else 0.05) == lost
