"""A long text, cut into sentences that are read aloud one after another; English and Chinese, whole or bit by bit.

The pieces, joined, are the text. Where it is not certain that a sentence ends, it goes on: two sentences in one piece
sound right, half a sentence does not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

#: The most characters of a piece, without the white space around it: English of about 12 s.
LONGEST = 160
#: The first piece ends at a comma when its sentence is longer than this, so that sound starts early.
FIRST_LONGEST = 80
#: A sentence with fewer letters and digits (those of Chinese count twice) shares a piece with the next: "No. Yes."
_SHORTEST = 4
#: Characters of a long text that are looked at together.
_CHUNK = 4096
#: A piece that ends at a comma has at least this share of what was allowed.
_CLAUSE_SHARE = 1 / 4

_CLOSERS = "\"'\u2018\u2019\u201c\u201d)\\]}»›」』】）》〉"
_ENDINGS = re.compile(
    # White space after the marks is part of the piece; without any, only marks of Chinese end a sentence.
    rf"(?P<marks>[.!?…。！？｡]+)[{_CLOSERS}]*\s*|"
    # A line that is empty, and one that begins with a bullet, begin something new.
    r"\n[^\S\n]*\n\s*|\n\s*(?=[-*•‣◦#])"
)
_CLAUSES = re.compile(rf"(?:[,;:—–][{_CLOSERS}]*\s+|[，；：、][{_CLOSERS}]*\s*)")
_SPACES = re.compile(r"\s+")
_WIDE_MARKS = frozenset("。！？｡")
#: Titles and the like: a name or a number follows them.
_NEVER_LAST = frozenset(
    "mr mrs ms messrs dr prof st mt rev hon gen col lt sgt capt fr sen rep gov pres vs cf ca approx fig figs vol nr pp "
    "eq sec ch art dept est ft jan feb mar apr jun jul aug sep sept oct nov dec eg ie al".split()
)
_ENDS_SENTENCE = re.compile(rf"(?:[.!?…。！？｡][{_CLOSERS}]*\s*|\n\s*\n\s*|\n\s*)\Z")
_LIST_NUMBER = re.compile(r"(?:\A|\n)\s*\d{1,3}\Z")
#: Of names, and of abbreviations such as U.S. and a.m.
_INITIALS = re.compile(r"[a-zà-ÿ](?:\.[a-zà-ÿ])*")
_LAST_WORD = re.compile(r"[\w.]*\w\Z")


class Splitter:
    """Cuts text that comes bit by bit: how it is divided into bits changes no piece.

    A sentence is given out when the first character of the next one is there, or at the end.
    """

    def __init__(self) -> None:
        self._early, self._text = FIRST_LONGEST, ""

    def push(self, text: str) -> Iterator[str]:
        """More of the text; the pieces that are complete now, with the white space that follows each."""
        for start in range(0, len(text), _CHUNK):
            self._text += text[start : start + _CHUNK]
            while cut := self._cut():
                piece, self._text = self._text[:cut], self._text[cut:]
                self._early = LONGEST
                yield piece

    def finish(self) -> Iterator[str]:
        """There is no more text; what is left of it."""
        rest, self._text = self._text, ""
        if rest:
            yield rest

    def _cut(self) -> int:
        """Where the first piece ends; 0 when that is not known yet, or there is only one.

        A cut that is known stays where it is, whatever follows: of that only white space and one character count.
        """
        text = self._text
        start, used = len(text) - len(text.lstrip()), len(text.rstrip())
        last, early = start + LONGEST, start + self._early
        for ending in _ENDINGS.finditer(text, start):
            core = len(text[: ending.end()].rstrip())
            if core > early and early < last and (cut := self._clause(start, early)):
                return cut
            if core > last:
                break
            if ending.end() == len(text):
                return 0  # the next sentence is not there yet
            if _ends(text[start : ending.start()], ending, text[ending.end()]):
                return ending.end()
        if used > early and early < last and (cut := self._clause(start, early)):
            return cut
        if used <= last:
            return 0
        return self._clause(start, last) or self._between_words(start, last)

    def _clause(self, start: int, last: int) -> int:
        """The end of the last clause that ends by `last` and is not too short; 0 without one."""
        cut = 0
        for clause in _CLAUSES.finditer(self._text, start):
            core = len(self._text[: clause.end()].rstrip())
            if core > last:
                break
            if core >= start + (last - start) * _CLAUSE_SHARE:
                cut = clause.end()
        return cut

    def _between_words(self, start: int, last: int) -> int:
        """After the last white space by `last`; in a longer word at `last`, or before a sign whose marks are there."""
        cut = 0
        for space in _SPACES.finditer(self._text, start):
            if space.start() > last:
                break
            cut = space.end()
        if cut:
            return cut
        cut = last
        while cut > start + 1 and _joins(self._text[cut]):
            cut -= 1
        return cut if cut > start + 1 else last


def split(text: str) -> list[str]:
    """The pieces of a text; joined they are the text; each is at most `LONGEST` characters, and white space."""
    splitter = Splitter()
    return [*splitter.push(text), *splitter.finish()]


def ends_sentence(piece: str) -> bool:
    """Whether a speaker pauses after the piece: not where it was cut in a sentence."""
    return _ENDS_SENTENCE.search(piece) is not None


def has_words(piece: str) -> bool:
    """Whether anything of it can be read aloud: a letter or a digit."""
    return any(map(str.isalnum, piece))


def _ends(before: str, ending: re.Match[str], following: str) -> bool:
    """Whether a sentence ends there: `before` is its text, `following` the first character of what comes next."""
    if sum(1 + _is_wide(character) for character in before if character.isalnum()) < _SHORTEST:
        return False
    marks = ending["marks"]
    if marks is None:
        return True
    spaced = ending[0][-1].isspace()
    if not _WIDE_MARKS.isdisjoint(marks) or (not spaced and _is_wide(following)):
        return True
    if not spaced or following.islower():
        return False
    return marks != "." or not _is_abbreviated(before, following)


def _is_abbreviated(before: str, following: str) -> bool:
    """Whether the full stop after `before` belongs to its last word."""
    if _LIST_NUMBER.search(before):
        return True
    found = _LAST_WORD.search(before)
    word = found[0].lower() if found else ""
    if word == "no":
        return following.isdigit()
    return word in _NEVER_LAST or _INITIALS.fullmatch(word) is not None


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _joins(character: str) -> bool:
    """Whether a character belongs to the one before it."""
    return unicodedata.combining(character) != 0 or character in "\u200c\u200d\ufe0e\ufe0f"
