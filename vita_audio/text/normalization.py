"""Text normalization for checkpoints that were trained on plain English sentences alone: numbers in words, a capital at
the beginning, a stop at the end, no quotes and no bullets.

A large checkpoint has seen text of every form, and reads it better as it was written; so this is a setting of the
checkpoint (`text_normalization` of its generation_config.json). What is safe for all is in `plain.py`.
"""

from __future__ import annotations

import re

#: Values of the setting: text as it was written, or English sentences in words.
NONE, WORDS = "none", "words"
TEXT_NORMALIZATIONS = (NONE, WORDS)

_BULLET = re.compile(r"^\s*(?:[-*•–—]+|\d{1,3}[.)])\s+(?=\S)", re.MULTILINE)
# Apostrophes inside of words stay: "don't", "o'clock".
_QUOTES = re.compile(r"[\"“”„«»‹›()\[\]{}*_`]|(?<![^\W_])['‘’]|['‘’](?![^\W_])")
_SIGNS = {"&": "and", "%": "percent", "+": "plus", "=": "is", "@": "at", "€": "euros", "$": "dollars", "£": "pounds"}
_SIGN = re.compile(r"[&%+=@€$£×]")
_TIMES = re.compile(r"(?<=\d)\s*[*×x]\s*(?=\d)", re.I)
_BETWEEN = re.compile(r"(?<=\w)[()\[\]{}*_]+(?=\w)")  # these stand for a blank there: 2(3+4), snake_case
_PRICE = re.compile(r"([€$£])\s*(\d+(?:[.,]\d+)*)")
#: Between letters and digits, but for the end of an ordinal: 5pm, B12, not 1st.
_BORDER = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?!(?:st|nd|rd|th)\b)(?=[^\W\d_])", re.I)
_MINUS = re.compile(r"(?<=\d)\s*[-−]\s*(?=\d)")
_NUMBER = re.compile(
    r"(?P<minus>(?<!\w)[-−])?(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?P<part>\.\d+)?(?P<order>st|nd|rd|th)?\b", re.I
)
_DASH = re.compile(r"\s*[;:—–…](?:[\s;:—–…]|-+(?=\s))*|\s+(?:-+\s+)+")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_LOUD = re.compile(r"\b[A-Z]{2,}(?:'[A-Z]+)?\b")
_QUESTION = re.compile(
    r"(?:what|which|who|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|would|have|has)\b", re.I
)
_NAMES = re.compile(
    r"\b(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday|january|february|april|june|july|august|september"
    r"|october|november|december)\b"
)  # "march" and "may" are other words too
_MOST_DIGITS = 15


def in_words(text: str) -> str:
    """English text as plain sentences; what has no letter or digit stays as it is.

    Lines become sentences; "!" becomes "."; words in capitals become small. A text without a stop gets one, "?" where
    it begins like a question.
    """
    lines = [_line(line) for line in _BULLET.sub("", text).splitlines()]
    return " ".join(line for line in lines if line) or text


def _line(line: str) -> str:
    line = _PRICE.sub(r"\2 \1", _BETWEEN.sub(" ", _TIMES.sub(" times ", line)))
    line = _BORDER.sub(" ", _MINUS.sub(" minus ", _QUOTES.sub("", line))).replace("×", " times ")
    line = _SIGN.sub(lambda sign: f" {_SIGNS[sign[0]]} ", line)
    line = _DASH.sub(", ", _NUMBER.sub(_number, line)).replace("!", ".")
    line = re.sub(r"\s+([,.?])", r"\1", " ".join(line.split())).strip(" ,")
    return " ".join(
        _sentence(found[0].strip(" ,-")) for found in _SENTENCE.finditer(line) if re.search(r"\w", found[0])
    )


def _sentence(text: str) -> str:
    text = f"{text[:1].upper()}{text[1:]}"
    words = re.findall(r"[A-Za-z']+", text)
    if len(words) > 1 and all(word.isupper() for word in words) and any(len(word) > 1 for word in words):
        text = text.lower()
    text = _LOUD.sub(lambda loud: loud[0].lower(), text)
    text = _NAMES.sub(lambda name: name[0].capitalize(), re.sub(r"(?<!')\bi\b", "I", text))
    body = text.rstrip(".?, ")
    end = "?" if "?" in text[len(body) :] else "." if "." in text[len(body) :] else ""
    return f"{body[:1].upper()}{body[1:]}{end or ('?' if _QUESTION.match(body) else '.')}"


def _number(found: re.Match[str]) -> str:
    """A number in words: `-3` minus three, `1st` first, `2.5` two point five; long ones digit by digit."""
    from num2words import num2words  # only checkpoints with this setting need it

    whole, part, order = found["whole"].replace(",", ""), found["part"] or "", found["order"]
    if len(whole) > _MOST_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        words = " ".join(num2words(int(digit)) for digit in whole)
    else:
        words = num2words(int(whole), to="ordinal" if order and not part else "cardinal")
    if part:
        words += " point " + " ".join(num2words(int(digit)) for digit in part[1:])
    words = words.replace("-", " ").replace(",", "")
    return f"{'minus ' if found['minus'] else ''}{words}"
