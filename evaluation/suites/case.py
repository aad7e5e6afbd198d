"""One case of a suite, whichever suite it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: asr: speech -> text. tts: text -> speech. qa: spoken question -> spoken answer, judged as text (S->T) and by its
#: sound (S->S).
KINDS = ("asr", "tts", "qa")
#: Languages whose scores are known: word errors for English, character errors for Chinese.
LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what its answer is held against.

    Args:
        id: unique within the suite.
        reference: words the answer should have (asr, tts), or the question in words (qa; "" where it is not published).
        audio: what is sent of asr and qa; `span_s`: from and to where in it, in seconds (None: all of it).
        answers: what is right (qa).
    """

    id: str
    kind: str
    language: str
    reference: str
    audio: Path | None = None
    span_s: tuple[float, float] | None = None
    answers: tuple[str, ...] = ()
