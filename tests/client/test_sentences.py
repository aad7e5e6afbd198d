"""Sentences of a text: nothing is lost, bounded, the same however the text comes in, and where they end."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vita_client.sentences import FIRST_LONGEST, LONGEST, Splitter, ends_sentence, has_words, split

#: Texts that are likely to have everything that matters next to each other.
_PIECES = ["\n\n", "\n- ", "Dr. ", "e.g. ", "3.5", "No. 4", "It rained. ", "He left! ", "你好。", "one, two, three, "]
_LONG = ["word " * 20, "x" * 70, "好" * 70]
_parts = st.sampled_from([*" \n\t.!?…。！？,，;:：、\"'“”()-*#1a好é\u0301\u200d", *_PIECES, *_LONG])
texts = st.lists(_parts, max_size=40).map("".join) | st.text(max_size=400)


@given(texts)
def test_the_pieces_are_the_text_and_bounded(text: str) -> None:
    pieces = split(text)
    assert "".join(pieces) == text
    assert all(len(piece.strip()) <= LONGEST for piece in pieces)
    assert all(piece.strip() for piece in pieces[:-1])


@settings(max_examples=300)
@given(texts, st.lists(st.integers(1, 90), min_size=1))
@example("one two three, " * 6 + " " * 90 + "four", [60, 40])
@example("a" * 78 + ", " + " " * 30 + "b" * 100, [85])
def test_how_the_text_comes_in_changes_nothing(text: str, sizes: list[int]) -> None:
    splitter, pieces, rest, number = Splitter(), list[str](), text, 0
    while rest:
        size = sizes[number % len(sizes)]
        pieces += splitter.push(rest[:size])
        rest, number = rest[size:], number + 1
    assert [*pieces, *splitter.finish()] == split(text)


@pytest.mark.parametrize(
    "text",
    [
        "It rained.| He left!| Did he?| Yes. Well…| Who knows?",
        "Dr. Smith paid $3.50 to Mrs. J. K. Jones.| It was No. 4 of Fig. 3 at 5 p.m. on Jan. 6.| No.",
        'He said "Stop!" and left.| "Why?" Nobody knew (not even we.)| So be it.',
        "See www.example.com, e.g. the U.S. map, vs. page 3.14.| It ended in 1984.| Then came more.",
        "你好吗？|今天天气很好。|他说：“我们走吧！”|好吧……|再见。",
        "Hello there.|你好 again.",
        "Chapter One\n\n|It was a dark\nand stormy night.",
        "We need:\n|- four eggs\n|- some milk\n|* and 2.5 pounds\nof flour.",
        "1. Boil the water.\n|2. Wait.\n|3. Drink it.",
        "No. Yes.| Maybe so.",
        "Wait... what is that?",
    ],
)
def test_where_sentences_end(text: str) -> None:
    """| marks the ends, before or after the white space."""
    wanted = [piece.strip() for piece in text.split("|")]
    assert [piece.strip() for piece in split(text.replace("|", ""))] == wanted


def test_a_long_sentence_is_cut_between_clauses_then_between_words() -> None:
    clause = "it was the age of wisdom"
    first, *others = split(", ".join([clause] * 20) + ".")
    assert len(first.strip()) <= FIRST_LONGEST
    assert len(others) < 5
    assert all(re.search(r"[,.] ?$", piece) for piece in [first, *others])
    assert not any(map(ends_sentence, [first, *others[:-1]]))
    pieces = split("word " * 100)
    assert {word for piece in pieces for word in piece.split()} == {"word"}
    assert split("我们，" * 100)[0].endswith("，")


def test_a_letter_keeps_its_marks_where_a_word_is_cut() -> None:
    word = "e\u0301" * 200
    assert not any(piece.startswith("\u0301") for piece in split(word))


def test_the_first_sentence_is_whole_where_it_is_short() -> None:
    sentence = "Well, it was cold, and the old man went home to his dog at once."
    assert split(sentence) == [sentence]


@pytest.mark.parametrize("piece", ["It rained. ", 'He said "no."', "好。", "Title\n\n", "- item\n", "Why?!  "])
def test_a_pause_follows_a_sentence(piece: str) -> None:
    assert ends_sentence(piece)


@pytest.mark.parametrize(
    ("text", "words"), [("a", True), ("7", True), ("好", True), ("...", False), ("—* \n", False), ("", False)]
)
def test_what_can_be_read_aloud(text: str, words: bool) -> None:
    assert has_words(text) is words


def test_a_long_text_takes_no_long_time() -> None:
    """Quadratic time would be minutes."""
    assert len(split("It rained a little. " * 20_000)) == 20_000
