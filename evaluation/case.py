"""One case of an evaluation, whichever data it comes from: what is sent, and what the answer is held against."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

#: Values of `Case.kind`.
KINDS = ("asr", "tts", "spoken", "typed", "text")
#: Languages whose scores are known: word errors for English, character errors for Chinese.
LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what its answer is held against.

    Args:
        id: unique within its data.
        task: of the public contract. asr: speech -> text. tts: text -> speech. chat: question -> spoken answer, judged
            as text and by its sound. text: question -> written answer.
        reference: words the answer should have ("": not known, as of questions with published answers).
        question: in words, of chat and text ("": it is spoken, and its words are not published).
        answers: what is right, of chat and text.
        audio: what is sent where the user speaks; `span_s`: from and to where in it, in seconds (None: all of it).
        teacher: the teacher's sound of `reference`; None where there is no teacher, or the answer is written.
        family, voice, held_out: groups of generated data (`training.data.manifest.ChatSample`).
    """

    id: str
    task: str
    language: str
    reference: str = ""
    question: str = ""
    answers: tuple[str, ...] = ()
    audio: Path | None = None
    span_s: tuple[float, float] | None = None
    teacher: Path | None = None
    family: str = ""
    voice: str = ""
    held_out: str = ""

    @property
    def kind(self) -> str:
        """The task; questions in chat are spoken or typed."""
        return self.task if self.task != "chat" else "typed" if self.audio is None else "spoken"

    @property
    def text(self) -> str | None:
        """What is sent where the user does not speak."""
        return None if self.audio is not None else self.question or self.reference

    @property
    def digest(self) -> str:
        """Of what an answer belongs to. An id alone may be a line's number; a sound counts by its size and time."""
        found = self.audio.stat() if self.audio is not None and self.audio.is_file() else None
        sound = (str(self.audio), self.span_s, found and (found.st_size, found.st_mtime_ns))
        return hashlib.sha256(repr((self.task, self.reference, self.question, sound)).encode()).hexdigest()[:16]

    @property
    def seed(self) -> int:
        """Of the sampling and of the decoder's noise."""
        return zlib.crc32(self.id.encode())
