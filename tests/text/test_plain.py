"""Everyday forms of a text are the text; what means something stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.text.plain import has_words, plain

SENTENCE = "The happy dog is in the garden."


@pytest.mark.parametrize(
    "form",
    [
        SENTENCE,
        f" {SENTENCE}",
        f"\n{SENTENCE}\r\n",
        f"\ufeff{SENTENCE}",
        SENTENCE.replace(" ", "\t", 1),
        SENTENCE.replace(" ", "\u00a0", 1),
        SENTENCE.replace(" ", " \u200b", 1),
        SENTENCE.replace(" ", "  "),
        SENTENCE.replace("h", "h\u00ad", 1),
        f"\u202a{SENTENCE}\u202c\x07",
        SENTENCE.replace(" ", "\u3000", 1),
    ],
)
@pytest.mark.parametrize("one_line", [False, True])
def test_a_form_of_a_sentence_is_the_sentence(form: str, one_line: bool) -> None:
    assert plain(form, one_line) == SENTENCE


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", " \n", "\n  ", "\u2028"])
def test_line_breaks_stay_but_for_what_is_read_aloud(line_end: str) -> None:
    assert plain(f"One{line_end}two") == "One\ntwo"
    assert plain(f"One{line_end}two", one_line=True) == "One two"
    assert plain(f"One{line_end}{line_end}two") == "One\n\ntwo"


@pytest.mark.parametrize(
    "text", ["Straße, 42 %", "你好，世界！", 'She said: "No - never!"', "ALL CAPS and iOS", "👩‍👧 می‌خواهم"]
)
def test_what_means_something_stays(text: str) -> None:
    assert plain(text) == text


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert plain("e\u0301te\u0301") == plain("été") == "été"


@given(st.text(), st.booleans())
def test_plain_text_is_plain_already_and_no_letter_is_lost(text: str, one_line: bool) -> None:
    once = plain(text, one_line)
    assert plain(once, one_line) == once
    assert has_words(once) == has_words(text)
    assert once == once.strip()
    assert not (one_line and "\n" in once)


@pytest.mark.parametrize(
    ("text", "words"), [("a", True), ("7", True), ("好", True), ("?!", False), ("👩", False), ("", False)]
)
def test_something_to_read_has_a_letter_or_a_digit(text: str, words: bool) -> None:
    assert has_words(text) == words
