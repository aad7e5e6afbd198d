"""Words of a text, edit distance, and whether an answer is right: for written and for recognised answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

#: Begins an accepted phrase that has to be the whole answer.
WHOLE = "^"
_WORD = re.compile(r"[a-z']+")


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation; hyphens part words."""
    return _WORD.findall(text.lower().replace("’", "'"))


def edit_distance(found: Sequence[object], wanted: Sequence[object]) -> int:
    """The fewest items to replace, insert or delete to make one sequence out of the other."""
    row = list(range(len(wanted) + 1))
    for number, item in enumerate(found, 1):
        diagonal, row[0] = row[0], number
        for column, other in enumerate(wanted, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (item != other))
    return row[-1]


def is_right(answer: str, accepted: Iterable[str], alike: Mapping[str, str] | None = None) -> bool:
    """Whether the words of `answer` end with those of an accepted phrase, or are those of one that begins with "^".

    Answers are worded so that what was asked comes last ("Two plus three is five."); looking at the end only keeps
    numbers that the answer repeats from the question out of the judgement. `alike` maps words of one sound to one of
    them, for answers that were spoken.
    """
    fold = alike or {}
    words = [fold.get(word, word) for word in words_of(answer)]
    for option in accepted:
        phrase = [fold.get(word, word) for word in words_of(option)]
        tail = words if option.startswith(WHOLE) else words[-len(phrase) :]
        if phrase and tail == phrase:
            return True
    return False
