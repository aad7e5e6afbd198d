"""Words of a text, and whether an answer is right: decided by program, for written and for recognised answers."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"[a-z']+")


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation; hyphens part words."""
    return _WORD.findall(text.lower().replace("’", "'"))


def is_right(answer: str, accepted: Iterable[str]) -> bool:
    """Whether the words of `answer` end with those of an accepted phrase.

    Answers are worded so that what was asked comes last ("Two plus three is five."); looking at the end only keeps
    numbers that the answer repeats from the question out of the judgement.
    """
    words = words_of(answer)
    return any(bool(phrase) and words[-len(phrase) :] == phrase for phrase in (words_of(option) for option in accepted))
