"""What people type, as a checkpoint was trained on it: without what is not seen or means nothing.

Only what is safe for any checkpoint and any language is changed; words, case, digits and punctuation stay.
"""

from __future__ import annotations

import re
import unicodedata

#: Characters without width: byte order mark, zero-width spaces and joiners between words, soft hyphen, word joiner. The
#: joiners stay (U+200C, U+200D): Persian words and emoji are written with them.
_INVISIBLE = re.compile("[\ufeff\u200b\u2060\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_BREAK = re.compile("\r\n|[\r\u0085\u2028\u2029\v\f]")
_BLANKS = re.compile(r"[^\S\n]+")
_AROUND_BREAKS = re.compile(" ?\n ?")


def plain(text: str, one_line: bool = False) -> str:
    """The text in composed form (NFC), without invisible and control characters; blanks of any kind, and runs of them,
    are one blank, line ends are "\\n", and none are at the ends. May be empty.

    Args:
        one_line: line breaks are blanks too: of a text to be read aloud they are no sound.
    """
    text = _INVISIBLE.sub("", _LINE_BREAK.sub("\n", unicodedata.normalize("NFC", text)))
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    text = _AROUND_BREAKS.sub("\n", _BLANKS.sub(" ", text)).strip()
    return " ".join(text.split()) if one_line else text


def has_words(text: str) -> bool:
    """Whether anything can be read aloud: a letter or a digit."""
    return any(unicodedata.category(c)[0] in "LN" for c in text)
