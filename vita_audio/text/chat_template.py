"""ChatML prompts of the four tasks as token ids, worded as the released models were trained (docs/audio.md 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vita_audio.text.tokenizer import TextTokenizer
from vita_audio.text.vocabulary import Vocabulary

#: Asks for an answer of interleaved text and audio.
SPOKEN_ANSWER_SYSTEM = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
TTS_INSTRUCTION = "Convert the text to speech."
ASR_INSTRUCTION = "Convert the speech to text."


class PromptBuilder:
    """Writes prompts for one checkpoint.

    Role line and content are tokenised apart, as in training: joined, "user\\n" and a content that begins with a line
    break would merge into other ids (docs/audio.md 7, trap 1).
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._encode = tokenizer.encode
        self._vocabulary = tokenizer.vocabulary

    def build(self, task: str, text: str | None = None, audio_codes: Sequence[int] | None = None) -> list[int]:
        """Prompt ids of a request.

        Args:
            task: chat, tts, asr or text.
            text: what the user typed; tts and text need it, chat takes text, audio or both.
            audio_codes: what the user said, as codes of the speech tokenizer; asr needs it.

        Raises:
            ValueError: the task is unknown, or text and audio are not what it takes.
        """
        audio = None if audio_codes is None else discrete_audio(self._vocabulary, audio_codes)
        match task, text, audio:
            case "chat", str(), None:
                return self._turn(self._encode(text), system=SPOKEN_ANSWER_SYSTEM)
            case "chat", None, list():
                return self._turn(audio, system=SPOKEN_ANSWER_SYSTEM)
            case "chat", str(), list():
                return self._turn([*self._encode(f"{text}\n"), *audio], system=SPOKEN_ANSWER_SYSTEM)
            case "tts", str(), None:
                return self._turn(self._encode(f"{TTS_INSTRUCTION}\n{text}"))
            case "asr", None, list():
                return self._turn([*self._encode(f"{ASR_INSTRUCTION}\n"), *audio])
            case "text", str(), None:
                return self._turn(self._encode(text))
        have = " and ".join(name for name, part in (("text", text), ("audio", audio)) if part is not None)
        raise ValueError(f"task {task!r} cannot be asked with {have or 'neither text nor audio'}")

    def _turn(self, content: list[int], system: str | None = None) -> list[int]:
        """One user turn, up to the place where the answer begins."""
        ids = [] if system is None else self._block("system", self._encode(system))
        ids += self._block("user", content)
        return [*ids, self._vocabulary.im_start, *self._encode("assistant\n")]

    def _block(self, role: str, content: list[int]) -> list[int]:
        vocabulary = self._vocabulary
        return [vocabulary.im_start, *self._encode(f"{role}\n"), *content, vocabulary.im_end, *self._encode("\n")]


def discrete_audio(vocabulary: Vocabulary, codes: Iterable[int]) -> list[int]:
    """Audio as tokens (base layout): begin tag, one id for each code, end tag. Raises ValueError for a wrong code."""
    return [vocabulary.begin_of_audio, *vocabulary.audio_ids(codes), vocabulary.end_of_audio]
