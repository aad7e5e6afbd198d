"""Asking a suite's cases: full and restarting servers, cases that cannot be asked, a run that is killed half way."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from client_protocol_double import ProtocolDouble
from evaluation import asking
from evaluation.asking import Asking, ask
from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.journal import Journal
from published_suites import tone, write
from waiting import until

FULL = "message-only [vita:server_full] server is full (4 running, 4 waiting)"


@pytest.fixture
def double() -> Iterator[ProtocolDouble]:
    made = ProtocolDouble()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_LONGEST_PAUSE_S", 0.2)


def tts(number: int, script: str = "chunks 2") -> Case:
    return Case(f"case/{number}", "tts", "en", script)


def run(url: str, cases: list[Case], folder: Path, patience_s: float = 30.0, done: object = None) -> Journal:
    journal = Journal(folder / "answers.jsonl", {"suite": "x"}, {})
    ask(Asking(url, at_once=2, patience_s=patience_s), cases, journal, folder / "sound", done or (lambda: None))  # type: ignore[arg-type]
    return journal


def test_each_answer_is_kept_with_its_sound_and_times(double: ProtocolDouble, tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    asr = Case("spoken", "asr", "en", "the words", audio=tmp_path / "a.wav")
    entries = run(double.url, [tts(0), asr], tmp_path).entries
    assert {name: "skipped" in entry for name, entry in entries.items()} == {"case/0": False, "spoken": False}
    sound, rate_hz = soundfile.read(tmp_path / "sound" / entries["case/0"]["sound"])
    assert len(sound) / rate_hz == pytest.approx(0.2)
    assert entries["spoken"]["sound"] == ""
    assert entries["case/0"]["first_audio_ms"] > 0
    assert {str(inputs["TASK"]) for inputs in double.inputs} == {"tts", "asr"}
    assert all("MODE" not in inputs for inputs in double.inputs)  # the server's default


def test_a_part_of_a_recording_is_sent(double: ProtocolDouble, tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 3.0)
    run(double.url, [Case("part", "asr", "zh", "x", audio=tmp_path / "a.wav", span_s=(1.0, 1.75))], tmp_path)
    assert len(double.inputs[0]["AUDIO"]) == 12_000  # type: ignore[arg-type]


def test_what_cannot_be_asked_is_skipped_with_a_reason(double: ProtocolDouble, tmp_path: Path) -> None:
    write(tmp_path / "noise.wav", "this is no sound")
    tone(tmp_path / "short.wav", 0.2)
    cases = [
        Case("missing", "asr", "en", "x", audio=tmp_path / "none.wav"),
        Case("unreadable", "asr", "en", "x", audio=tmp_path / "noise.wav"),
        Case("reversed", "asr", "en", "x", audio=tmp_path / "short.wav", span_s=(0.1, 0.0)),
        Case("too long", "asr", "en", "x", audio=tmp_path / "short.wav", span_s=(0.1, 0.5)),
        Case("beyond", "asr", "en", "x", audio=tmp_path / "short.wav", span_s=(5.0, 6.0)),
        tts(0, "fail"),
        tts(1),
    ]
    entries = run(double.url, cases, tmp_path).entries
    assert entries["missing"]["skipped"] == "the sound is missing"
    assert "libsndfile" in entries["unreadable"]["skipped"]
    assert "cannot be read" in entries["beyond"]["skipped"]
    for name in ("reversed", "too long"):
        assert entries[name]["skipped"] == "the request is not valid: the sound has no such part"
    assert "0.1 to 0.5 s of" in entries["too long"]["detail"]
    assert entries["case/0"]["skipped"].startswith("the request failed: ")
    assert "text" in entries["case/1"]
    assert len(entries) == len(cases)
    tone(tmp_path / "none.wav")  # it is there the next time
    assert "text" in run(double.url, cases[:1], tmp_path).entries["missing"]


def test_an_answer_whose_sound_is_gone_is_asked_for_again(double: ProtocolDouble, tmp_path: Path) -> None:
    cases = [tts(0), tts(1)]
    entries = run(double.url, cases, tmp_path).entries
    sound = tmp_path / "sound" / entries["case/1"]["sound"]
    sound.unlink()
    run(double.url, cases, tmp_path)
    assert sound.is_file()
    assert len(double.requests) == 3


def test_a_case_that_has_changed_is_asked_again(double: ProtocolDouble, tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    spoken = Case("1", "asr", "en", "x", audio=tmp_path / "a.wav")
    for _ in range(2):
        run(double.url, [spoken], tmp_path)
    assert len(double.requests) == 1
    tone(tmp_path / "a.wav", 1.5)  # another recording in its place
    changes = [spoken, replace(spoken, span_s=(0.5, 1.0)), replace(spoken, reference="y"), replace(spoken, task="chat")]
    for number, case in enumerate(changes, 2):
        for _ in range(2):
            run(double.url, [case], tmp_path)
        assert len(double.requests) == number


def test_a_full_server_is_asked_again(double: ProtocolDouble, tmp_path: Path) -> None:
    double.once["chunks 1"] = FULL
    assert "text" in run(double.url, [tts(0, "chunks 1")], tmp_path).entries["case/0"]
    assert len(double.requests) == 2


def test_a_server_that_restarts_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    first = ProtocolDouble()
    followed = threading.Thread(
        target=run, args=(first.url, [tts(n, f"chunks 1{n} 0.02") for n in range(4)], tmp_path), daemon=True
    )
    followed.start()
    until(lambda: len(first.requests) >= 1)
    first.close()
    second = ProtocolDouble(port=first.port)
    followed.join(60)
    assert not followed.is_alive()
    entries = Journal(tmp_path / "answers.jsonl", {"suite": "x"}, {}).entries
    assert [len(entries[f"case/{n}"]["text"].split("é")) - 1 for n in range(4)] == [10, 11, 12, 13]
    second.close()


def test_a_server_that_stays_away_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(EvaluationError, match=r"no request got through for 0.2 s .*run the same command again"):
            run(f"127.0.0.1:{taken.getsockname()[1]}", [tts(0)], tmp_path, patience_s=0.2)


def test_a_run_that_was_killed_goes_on(double: ProtocolDouble, tmp_path: Path) -> None:
    cases = [tts(number) for number in range(8)]
    ticks = []

    def killed() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(double.url, cases, tmp_path / "killed", done=killed)
    kept = Journal(tmp_path / "killed" / "answers.jsonl", {"suite": "x"}, {}).entries
    assert 3 <= len(kept) < len(cases)
    asked = len(double.requests)
    again = run(double.url, cases, tmp_path / "killed").entries
    assert len(double.requests) - asked == len(cases) - len(kept)
    whole = run(double.url, cases, tmp_path / "whole").entries
    assert {n: (e["text"], e["tokens"]) for n, e in again.items()} == {
        n: (e["text"], e["tokens"]) for n, e in whole.items()
    }
