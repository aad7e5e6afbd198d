"""Held-out data in published layouts: what is written is what the suites' readers read."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.layouts import generated, write_layouts
from evaluation.suites.registry import load_suite
from published_suites import tone

WORDS = ("one", "two", "three")


def held_out(folder: Path) -> list[Case]:
    cases = [Case("a", "tts", "en", "Read this, please.")]
    for number, voice in enumerate(("slt", "kal", "slt")):
        tone(folder / f"{number}.flac", 0.1 * (number + 1))
        cases.append(
            Case(f"r{number}", "asr", "en", f"It's {WORDS[number]}, now.", audio=folder / f"{number}.flac", voice=voice)
        )
    question = {"question": "What is it?", "answers": ("^an animal", "animal"), "reference": "It is an animal."}
    cases.append(Case("q", "chat", "en", **question, audio=folder / "0.flac"))  # type: ignore[arg-type]
    return [
        *cases,
        Case("t", "chat", "en", "no", question="Typed?"),
        Case("w", "text", "en", "no", question="Written?"),
    ]


def test_the_readers_read_what_was_written(tmp_path: Path) -> None:
    cases = held_out(tmp_path)
    write_layouts(cases, tmp_path / "out")
    assert "not the benchmark" in generated(tmp_path / "out")
    assert generated(tmp_path) == ""
    found = {
        name: load_suite(name, tmp_path / "out", None, None)[1] for name in ("librispeech", "libritts", "web-questions")
    }
    assert sorted(case.reference for case in found["librispeech"]) == ["IT'S ONE NOW", "IT'S THREE NOW", "IT'S TWO NOW"]
    for case in found["librispeech"]:
        assert case.audio is not None
        number = WORDS.index(case.reference.split()[1].lower())
        assert case.audio.read_bytes() == (tmp_path / f"{number}.flac").read_bytes()
    assert len({case.id.split("-")[0] for case in found["librispeech"]}) == 2  # a speaker a voice
    assert [case.text for case in found["libritts"]] == ["Read this, please."]
    (question,) = found["web-questions"]
    assert (question.question, question.answers, question.kind) == ("What is it?", ("an animal", "animal"), "spoken")


def test_a_folder_that_is_not_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is not empty"):
        write_layouts(held_out(tmp_path), tmp_path)
