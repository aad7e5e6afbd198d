"""Text normalization: everyday forms of a sentence become the sentence."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vita_audio.text.normalization import in_words

pytest.importorskip("num2words")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The opposite of hot is cold.", "The opposite of hot is cold."),
        ("THE OPPOSITE OF HOT IS COLD.", "The opposite of hot is cold."),
        ("the opposite of hot is cold", "The opposite of hot is cold."),
        ("The HOT dog", "The hot dog."),
        ("After A comes B.", "After A comes B."),
        ("i am here on monday", "I am here on Monday."),
        ("my sister may march", "My sister may march."),
        ('"The cat is black."', "The cat is black."),
        ("“The cat is black.”", "The cat is black."),
        ("'tis a dog's life, don't cry", "Tis a dog's life, don't cry."),
        ("- The cat.\n- The dog", "The cat. The dog."),
        ("1. The cat\n2) the dog", "The cat. The dog."),
        ("The cat! The dog!", "The cat. The dog."),
        ("what is 2+3", "What is two plus three?"),
        ("What is 12 - 5?", "What is twelve minus five?"),
        ("It is -3 or 42.", "It is minus three or forty two."),
        ("1,234 and 3.05", "One thousand two hundred and thirty four and three point zero five."),
        ("the 1st and 22nd", "The first and twenty second."),
        ("007", "Zero zero seven."),
        ("50% of it", "Fifty percent of it."),
        ("What is 6*7?", "What is six times seven?"),
        ("6 × 7, 6x7 and 6 x 7", "Six times seven, six times seven and six times seven."),
        ("2(3+4)", "Two three plus four."),
        ("snake_case and f(x)", "Snake case and f x."),
        ("vitamin B12 at 5pm, 10km", "Vitamin B twelve at five pm, ten km."),
        ("$5, €2.50 and 3 £", "Five dollars, two point five zero euros and three pounds."),
        ("the 21st of mp3s", "The twenty first of mp three s."),
        ("One thing: a dog; a cat - or not...", "One thing, a dog, a cat, or not."),
        ("How are you", "How are you?"),
        ("Is it?", "Is it?"),
        ("...", "..."),
    ],
)
def test_everyday_forms(text: str, wanted: str) -> None:
    assert in_words(text) == wanted


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=80))
def test_no_letter_is_lost_and_no_digit_and_no_sign_is_left(text: str) -> None:
    made = in_words(text)
    if re.search(r"[A-Za-z0-9]", text):
        assert made
        assert not re.search(r"[0-9]", made), made
        assert not re.search(r"[!\"*`\[\]{}()\n]", made)
        if not re.search(r"[0-9&%+=@$]", text):
            assert re.findall("[a-z]", made.lower()) == re.findall("[a-z]", text.lower())


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=80))
@example("aA: i").via("a capital at the beginning")
@example(".,1 - 2 -").via("marks at the ends of sentences")
@example("a;- b - - c").via("dashes in a row")
@example("_'s $0'O").via("apostrophes beside signs")
@example("j, x'i").via("a letter behind an apostrophe")
def test_what_is_in_words_stays_as_it_is(text: str) -> None:
    made = in_words(text)
    assert in_words(made) == made


@given(st.integers(0, 10**30))
def test_every_number_has_words(value: int) -> None:
    words = in_words(f"It is {value}.")
    assert re.fullmatch(r"It is [a-z ]+\.", words)
