"""Where speech begins and ends: a spoken question, silence, noise, rules, any way of cutting the stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from gateway.realtime.session import ServerVad
from gateway.realtime.turn_taking import RATE_HZ, SpeechStarted, SpeechStopped, TurnDetector, TurnRules

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    """Speech from 0.24 s to 1.7 s, float32 [samples] at 16 kHz."""
    samples, rate = soundfile.read(ROOT / "examples" / "question.wav", dtype="float32")
    assert rate == RATE_HZ
    return samples


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE_HZ), np.float32)


def ms(samples: int) -> float:
    return samples / RATE_HZ * 1000


def test_a_turn_has_its_padding_before_and_its_silence_after(question: np.ndarray) -> None:
    detector = TurnDetector(TurnRules())
    started, stopped = detector.push(np.concatenate([silence(1), question, silence(1)]))
    assert isinstance(started, SpeechStarted)
    assert isinstance(stopped, SpeechStopped)
    assert 700 < ms(started.sample) < 1400
    assert ms(stopped.sample - started.sample) == pytest.approx(ms(len(question)) + 300, abs=700)


def test_it_begins_within_a_fifth_of_a_second_of_speech(question: np.ndarray) -> None:
    loud = int(np.argmax(np.abs(question) > 0.05))
    detector = TurnDetector(TurnRules())
    for at in range(0, len(question), 160):
        if detector.push(question[at : at + 160]):
            assert ms(at - loud) < 200
            return
    pytest.fail("no speech found")


@pytest.mark.parametrize("piece", [77, 511, 512, 4096, 10**6])
def test_the_cut_of_the_stream_changes_nothing(question: np.ndarray, piece: int) -> None:
    stream = np.concatenate([silence(0.2), question, silence(0.8)])[:40_000]
    whole = TurnDetector(TurnRules(silence_duration_ms=200)).push(stream)
    detector = TurnDetector(TurnRules(silence_duration_ms=200))
    pieces = [event for at in range(0, len(stream), piece) for event in detector.push(stream[at : at + piece])]
    assert pieces == whole
    assert whole


def test_silence_and_faint_noise_are_no_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 0.002, 4 * RATE_HZ).astype(np.float32)
    assert not TurnDetector(TurnRules()).push(np.concatenate([silence(2), noise]))


def test_more_silence_is_waited_for_when_the_rules_say_so(question: np.ndarray) -> None:
    stream = np.concatenate([question, silence(0.6), question, silence(3)])
    patient = TurnDetector(TurnRules(silence_duration_ms=1600)).push(stream)
    eager = TurnDetector(TurnRules(silence_duration_ms=400)).push(stream)
    assert [type(event) for event in patient] == [SpeechStarted, SpeechStopped]
    assert [type(event) for event in eager] == [SpeechStarted, SpeechStopped] * 2


def test_the_padding_never_reaches_into_the_turn_before(question: np.ndarray) -> None:
    rules = TurnRules(prefix_padding_ms=5000, silence_duration_ms=200)
    found = TurnDetector(rules).push(np.concatenate([question, silence(0.4), question, silence(1)]))
    assert [type(event) for event in found] == [SpeechStarted, SpeechStopped] * 2
    assert found[2].sample == found[1].sample


def test_a_turn_that_is_too_long_is_ended(question: np.ndarray) -> None:
    detector = TurnDetector(replace(TurnRules(), longest_ms=1000))
    found = detector.push(question)
    assert isinstance(found[1], SpeechStopped)
    assert ms(found[1].sample - found[0].sample) == pytest.approx(1000, abs=40)


def test_reset_forgets_the_turn_but_not_the_position(question: np.ndarray) -> None:
    detector = TurnDetector(TurnRules(), position=RATE_HZ)
    assert detector.push(question[: RATE_HZ + 100])
    detector.reset()
    started = detector.push(question)[0]
    assert isinstance(started, SpeechStarted)
    assert started.sample >= 2 * RATE_HZ + 100


@given(st.floats(0, 1))
def test_certain_silence_ends_a_turn_whatever_the_threshold(threshold: float) -> None:
    detector = TurnDetector(TurnRules(threshold=threshold))
    heard = [detector._listen(probability) for probability in (1.0, 1.0, *[0.0] * 16)]
    assert isinstance(heard[1], SpeechStarted)
    assert isinstance(heard[-1], SpeechStopped)


def test_a_session_says_the_rules_that_hold_by_default() -> None:
    assert ServerVad().rules() == TurnRules()
