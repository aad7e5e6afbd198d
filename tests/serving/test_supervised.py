"""What the launcher's watch rests on in the stages: Pings answered by the loops, threads that end their process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from pulses import RecordedPulse
from serving import speech_lm_stage
from serving.admission import Admission, AdmissionRecord
from serving.audio_decoder_stage import AudioDecoderStage
from serving.heartbeat import Heartbeats
from serving.metrics.recorder import Recorder
from serving.speech_lm_stage import SpeechLmStage
from vita_audio.contract.messages import Ping
from waiting import until


class Asked:
    """A service whose loop answers when the test lets it."""

    def __init__(self) -> None:
        self.pings: list[Callable[[], None]] = []

    def ping(self, answer: Callable[[], None]) -> None:
        self.pings.append(answer)


def language_model(pulse: RecordedPulse | None = None) -> tuple[Any, Admission, SpeechLmStage]:
    service, admission = Asked(), Admission(AdmissionRecord(None), 1, 0)
    return service, admission, SpeechLmStage(service, admission, pulse=pulse)  # type: ignore[arg-type]


def test_the_language_models_loop_answers_a_ping_without_a_place() -> None:
    service, admission, stage = language_model()
    sent: list[tuple[object, bool]] = []
    stage.accept(Ping(), lambda message, final: sent.append((message, final)))
    assert sent == []
    assert admission.load().taken == 0
    service.pings.pop()()
    assert sent == [(None, True)]


def test_the_decoders_loop_answers_a_ping_without_content() -> None:
    service = Asked()
    stage = AudioDecoderStage(service)  # type: ignore[arg-type]
    sent: list[object] = []
    stage.accept(Ping, sent.append, lambda: True)
    assert sent == []
    service.pings.pop()()
    assert sent == [None]


def test_a_prober_beats_and_ends_the_process_when_it_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_lm_stage, "TICK_S", 0.005)
    pulse = RecordedPulse()
    _, admission, _ = language_model(pulse)
    until(lambda: pulse.beats > 3)
    assert not pulse.ended.is_set()
    monkeypatch.setattr(admission, "overdue", lambda: 1 / 0)
    assert pulse.ended.wait(10)


def test_a_publisher_that_fails_again_and_again_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = ModuleType("triton_python_backend_utils")
    triton.MetricFamily = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    monkeypatch.delitem(sys.modules, "serving.metrics.publisher", raising=False)
    module = importlib.import_module("serving.metrics.publisher")
    monkeypatch.setattr(module, "_INTERVAL_S", 0.001)
    ended: list[int] = []
    rounds = 0

    def measure() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 1:
            raise RuntimeError("Triton is gone")

    heartbeats = Heartbeats(end=lambda: ended.append(rounds))
    monkeypatch.setattr(heartbeats, "measure", lambda recorder: None)
    publisher = module.MetricsPublisher(Recorder(), measure, heartbeats)
    until(lambda: bool(ended))
    publisher.close()
    assert ended == [2 + module._MAX_FAILURES]
    del sys.modules["serving.metrics.publisher"]
