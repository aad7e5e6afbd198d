"""Words of a text, and whether an answer is right: decided by program, for written and for recognised answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: Begins an accepted phrase that has to be the whole answer.
WHOLE = "^"
_WORD = re.compile(r"[a-z']+")


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation; hyphens part words."""
    return _WORD.findall(text.lower().replace("’", "'"))


def is_right(answer: str, accepted: Iterable[str], alike: Mapping[str, str] | None = None) -> bool:
    """Whether the words of `answer` end with those of an accepted phrase, or are those of one that begins with "^".

    Answers are worded so that what was asked comes last ("Two plus three is five."); looking at the end only keeps
    numbers that the answer repeats from the question out of the judgement. `alike` maps words of one sound to one of
    them, for answers that were heard.
    """
    fold = alike or {}
    words = [fold.get(word, word) for word in words_of(answer)]
    for option in accepted:
        phrase = [fold.get(word, word) for word in words_of(option)]
        tail = words if option.startswith(WHOLE) else words[-len(phrase) :]
        if phrase and tail == phrase:
            return True
    return False
