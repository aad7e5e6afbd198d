"""Every reader on a tiny suite in its published layout, and on folders that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.registry import SUITES, load_suite
from published_suites import MAKERS, write

TEXTS = ["the cat", "a dog", "two birds"]


def load(name: str, folder: Path, part: str | None = None) -> list[Case]:
    return sorted(load_suite(name, folder, part, None)[1], key=lambda case: case.id)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_read_in_its_published_layout(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path, TEXTS)
    cases = load(name, tmp_path)
    assert len(cases) == len(TEXTS)
    assert len({case.id for case in cases}) == len(TEXTS)
    for case, text in zip(cases, TEXTS, strict=True):
        assert case.language == ("zh" if name in ("aishell", "wenetspeech") else "en")
        if case.task == "chat":
            assert case.answers[0] == text
            assert case.question
        else:
            assert case.reference.lower() == text
        if case.task == "tts":
            assert case.audio is None
        else:
            assert case.audio is not None
            assert case.audio.is_file()
    assert {case.task for case in cases} == {
        "tts" if name in ("libritts", "seed-tts") else "chat" if "q" in name else "asr"
    }


@pytest.mark.parametrize("name", SUITES)
def test_a_folder_that_is_not_the_suite_is_one_clear_line(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(EvaluationError) as raised:
            load(name, folder)
        assert str(folder) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_answers_of_several_columns_and_separators(tmp_path: Path) -> None:
    MAKERS["trivia-qa"](tmp_path, TEXTS)
    MAKERS["web-questions"](tmp_path, TEXTS)
    assert load("trivia-qa", tmp_path)[0].answers == ("the cat", "the other")
    assert load("web-questions", tmp_path)[0].answers == ("the cat", "the other")


def test_segments_of_one_recording_have_their_own_times(tmp_path: Path) -> None:
    MAKERS["wenetspeech"](tmp_path, TEXTS)
    assert [case.span_s for case in load("wenetspeech", tmp_path)] == [(0.0, 0.4), (0.5, 0.9), (1.0, 1.4)]
    with pytest.raises(EvaluationError, match="TEST_MEETING"):
        load("wenetspeech", tmp_path, "test_meeting")


def test_the_limit_draws_the_same_cases_each_time(tmp_path: Path) -> None:
    MAKERS["libritts"](tmp_path, [f"text {number}" for number in range(20)])
    first, second = (load_suite("libritts", tmp_path, None, 5)[1] for _ in range(2))
    assert first == second
    assert len(first) == 5
    assert [case.id for case in first] != sorted(case.id for case in first)


def test_a_speaker_that_was_not_unpacked_is_missing_and_not_left_out(tmp_path: Path) -> None:
    MAKERS["aishell"](tmp_path, TEXTS)
    with (tmp_path / "data_aishell/transcript/aishell_transcript_v0.8.txt").open("a", encoding="utf-8") as file:
        file.write("BAC009S0765W0121 而 对\n")
    cases = load("aishell", tmp_path)
    assert [case.audio is not None and case.audio.is_file() for case in cases] == [True, True, True, False]
    shutil.rmtree(tmp_path / "data_aishell/wav/test/S0764")
    with pytest.raises(EvaluationError, match=r"unpack wav/\*\.tar\.gz"):
        load("aishell", tmp_path)


def test_questions_that_are_no_csv_are_named(tmp_path: Path) -> None:
    MAKERS["trivia-qa"](tmp_path, TEXTS)
    path = tmp_path / "eval_datas/trivia_qa/trivia_qa.csv"
    path.write_text(path.read_text() + '"' + "a quote that does not end " * 10_000)
    with pytest.raises(EvaluationError, match=r"trivia_qa\.csv cannot be read as CSV"):
        load("trivia-qa", tmp_path)


def test_a_part_that_the_suite_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="test-clean, test-other"):
        load_suite("librispeech", tmp_path, "test", None)


def test_a_line_that_is_cut_off_is_named(tmp_path: Path) -> None:
    write(tmp_path / "en" / "meta.lst", "name|prompt|wav|text", "name|prompt")
    with pytest.raises(EvaluationError, match=r"meta\.lst, line 2: 2 columns"):
        load("seed-tts", tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ('{"kind": "sing"}', "asr, tts, qa"),
        ('{"kind": ["asr"]}', "asr, tts, qa"),
        ('{"kind": "tts", "text": "a", "language": "fr"}', "en, zh"),
        ('{"kind": "asr", "text": "a"}', "asr needs audio"),
        ('{"kind": "qa", "audio": "a.wav"}', "qa needs answers"),
        ('{"kind": "tts", "text": "a", "txt": "b"}', "unknown key txt"),
        ('{"kind": "qa", "audio": "a.wav", "answers": "b"}', "list of strings"),
        ('{"kind": "tts", "text": "a", "id": 1}\n{"kind": "tts", "text": "b", "id": 1}', "1 comes twice"),
    ],
)
def test_a_wrong_line_of_a_manifest_is_named(line: str, said: str, tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", line)
    with pytest.raises(EvaluationError, match=said):
        load("manifest", tmp_path / "mine.jsonl")
