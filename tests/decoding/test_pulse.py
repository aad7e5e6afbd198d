"""The decoder's threads show that they turn, and report their end after those of their streams."""

from __future__ import annotations

import threading

import pytest

from decoding_bench import Bench, audio, make
from pulses import RecordedPulse
from vita_audio.contract.messages import Cancel, Released
from vita_audio.decoding import cancel_notifier, service
from vita_audio.decoding.cancel_notifier import CancelNotifier
from waiting import until


@pytest.fixture
def pulse() -> RecordedPulse:
    return RecordedPulse()


@pytest.fixture
def bench(pulse: RecordedPulse, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(service, "IDLE_TURN_S", 0.01)
    return make(pulse=pulse)


def test_an_idle_decoder_beats_and_answers_a_ping(bench: Bench, pulse: RecordedPulse) -> None:
    until(lambda: pulse.beats > 5)
    answered = threading.Event()
    bench.service.ping(answered.set)
    assert answered.wait(10)
    assert (bench.service.stats().live_streams, bench.answers) == (0, [])
    bench.service.close()
    assert not pulse.ended.is_set()


def test_a_decode_is_a_call_and_a_ping_waits_for_its_end(bench: Bench, pulse: RecordedPulse) -> None:
    bench.flow.open.clear()
    bench.send("s", audio(40))
    assert bench.flow.entered.wait(10)
    assert pulse.inside.is_set()
    answered = threading.Event()
    bench.service.ping(answered.set)
    assert not answered.wait(0.05)
    bench.flow.open.set()
    assert answered.wait(10)
    bench.service.close()


def test_a_broken_decoder_ends_its_streams_first_and_then_the_process(
    bench: Bench, pulse: RecordedPulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.service, "_choose", lambda: 1 / 0)
    bench.send("s", audio(40))
    assert pulse.ended.wait(10)
    assert bench.of("s")[-1].status.final
    assert bench.of("s")[-1].status.code == "unhealthy"
    bench.send("t", audio(4))
    assert bench.of("t")[-1].status.code == "unhealthy"


@pytest.mark.parametrize("lost", [False, True])
def test_a_lost_gpu_ends_the_process_and_a_decode_that_failed_does_not(
    bench: Bench, pulse: RecordedPulse, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    def fault(*inputs: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(service, "gpu_is_lost", lambda error: lost)
    monkeypatch.setattr(bench.flow, "condition", fault)
    bench.send("s", audio(40))
    bench.wait(1)
    assert bench.of("s")[-1].status.state == "failed"
    assert (bench.of("s")[-1].status.code == "unhealthy") == lost
    assert pulse.ended.wait(10 if lost else 0.05) == lost


def test_the_notifier_beats_calls_and_outlives_an_error(monkeypatch: pytest.MonkeyPatch, pulse: RecordedPulse) -> None:
    monkeypatch.setattr(cancel_notifier, "IDLE_TURN_S", 0.01)
    inside: list[bool] = []

    def notify(message: Cancel | Released) -> None:
        inside.append(pulse.inside.is_set())
        raise RuntimeError("refused")

    notifier = CancelNotifier(notify, pulse)
    until(lambda: pulse.beats > 5)
    done = threading.Event()
    notifier.release("s", then=done.set)
    assert done.wait(10)
    assert (inside, notifier.errors) == ([True], 1)
    assert notifier.close(10)
    assert not pulse.ended.is_set()


def test_a_notifier_that_breaks_ends_the_process(pulse: RecordedPulse) -> None:
    notifier = CancelNotifier(lambda message: None, pulse)

    def fault() -> None:
        raise AssertionError("a bug")

    notifier.release("s", then=fault)
    assert pulse.ended.wait(10)
