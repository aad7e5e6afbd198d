"""Scores of one answer against those computed by hand."""

from __future__ import annotations

import pytest

from evaluation.measures import errors, is_right, normalise, unit, used


@pytest.mark.parametrize(
    ("reference", "answer", "edits", "words"),
    [
        ("THE CAT IS SMALL", "the cat is small.", 0, 4),
        ("the cat is small", "the hat is small", 1, 4),
        ("the cat is small", "a cat small small", 2, 4),  # one word replaced twice
        ("the cat", "", 2, 2),
        ("twenty one colours", "21 colors", 0, 2),  # spelling and numbers are Whisper's
        ("Mr. Smith didn't", "mister smith did not", 0, 4),
        ("two", "uh two [noise] dogs", 1, 1),
    ],
)
def test_word_errors_of_english(reference: str, answer: str, edits: int, words: int) -> None:
    found = errors(reference, answer, "en")
    assert (found.edits, found.words) == (edits, words)


@pytest.mark.parametrize(
    ("reference", "answer", "edits", "characters"),
    [
        ("而 对 楼市", "而对楼市。", 0, 4),
        ("你好，世界", "你坏世界", 1, 4),
        ("你好", "你好吗 ok", 3, 2),
        ("你好", "", 2, 2),
    ],
)
def test_character_errors_of_chinese(reference: str, answer: str, edits: int, characters: int) -> None:
    found = errors(reference, answer, "zh")
    assert (found.edits, found.words) == (edits, characters)
    assert unit("zh") == "CER"


def test_nothing_but_punctuation_has_no_words() -> None:
    assert normalise(" ?! ", "en") == normalise("。，", "zh") == ""


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("It is Paris, of course.", ["paris"], True),
        ("It is Paris.", ["London", "PARIS"], True),
        ("The comparison is hard.", ["Paris"], False),  # whole words only
        ("New big York", ["New York"], False),
        ("There were twenty one.", ["21"], True),
        ("Anything", ["", "..."], False),
        ("", ["Paris"], False),
    ],
)
def test_an_answer_is_right_where_an_accepted_one_stands_in_it(answer: str, accepted: list[str], right: bool) -> None:
    assert is_right(answer, accepted, "en") is right


def test_packages_and_versions_are_named() -> None:
    assert used().startswith("jiwer 4")
    assert "whisper-normalizer 0." in used()
