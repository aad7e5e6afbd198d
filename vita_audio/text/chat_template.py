"""ChatML as token ids, worded as the released models were trained: for serving and training alike (docs/audio.md 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

from vita_audio.text.interleave import interleave
from vita_audio.text.tokenizer import TextTokenizer

#: Asks for an answer of interleaved text and audio.
SPOKEN_ANSWER_SYSTEM = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
TTS_INSTRUCTION = "Convert the text to speech."
ASR_INSTRUCTION = "Convert the speech to text."
#: Stands for one audio in a message that is written as text, as in the authors' data.
AUDIO_PLACEHOLDER = "<|audio|>"
ROLES = ("system", "user", "assistant")
#: Every fixed text as it is tokenised, for a tokenizer that is learned: wording, and the lines that name a role.
FIXED_TEXTS = (SPOKEN_ANSWER_SYSTEM, f"{TTS_INSTRUCTION}\n", f"{ASR_INSTRUCTION}\n")
ROLE_LINES = tuple(f"{role}\n" for role in ROLES)

A = TypeVar("A")  # how audio is given: codes, or a placeholder
#: Audio in a prompt.
Speech: TypeAlias = "Sequence[int] | ContinuousSpeech"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: its role (system, user or assistant), and the ids of its content (`ChatTemplate.content`)."""

    role: str
    content: Sequence[int]

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown role."""
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is not one of {', '.join(ROLES)}")


def task_turns(
    task: str, text: str | None = None, audio: A | None = None, system: str | None = None
) -> list[tuple[str, tuple[str | A, ...]]]:
    """The turns before an answer: (role, parts of the content), text and audio in the wording of the task.

    Args:
        task: chat, tts, asr or text.
        text: what the user typed; tts and text need it, chat takes text, audio or both.
        audio: what the user said; asr needs it.
        system: of the system turn, in place of the task's own wording (chat's; the others have none).

    Raises:
        ValueError: the task is unknown, or text and audio are not what it takes.
    """
    match task:
        case "chat" if text is not None and audio is not None:
            user: tuple[str | A, ...] = (f"{text}\n", audio)
        case "chat" | "text" if text is not None and audio is None:
            user = (text,)
        case "chat" if audio is not None:
            user = (audio,)
        case "tts" if text is not None and audio is None:
            user = (f"{TTS_INSTRUCTION}\n{text}",)
        case "asr" if audio is not None and text is None:
            user = (f"{ASR_INSTRUCTION}\n", audio)
        case _:
            have = " and ".join(name for name, part in (("text", text), ("audio", audio)) if part is not None)
            raise ValueError(f"task {task!r} cannot be asked with {have or 'neither text nor audio'}")
    if system is None and task == "chat":
        system = SPOKEN_ANSWER_SYSTEM
    return [("user", user)] if system is None else [("system", (system,)), ("user", user)]


@dataclass(frozen=True, slots=True)
class ContinuousSpeech:
    """Speech of a Plus model: `rows` embeddings stand in the prompt, and <|context_of_audio|> in their places."""

    rows: int


class ChatTemplate:
    """Writes conversations for one checkpoint.

    Role line and content are tokenised apart, as in training: joined, "user\\n" and a content that begins with a line
    break would merge into other ids (docs/audio.md 7, trap 1).
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._encode, self._vocabulary = tokenizer.encode, tokenizer.vocabulary

    def content(self, parts: Iterable[str | Speech], ratio: Sequence[int] = ()) -> list[int]:
        """Ids of a turn's content.

        Args:
            parts: in order, each text, or audio (begin tag, ids, end tag): codes of the speech tokenizer, or the places
                of embeddings.
            ratio: interleaves text and audio, as the answers of a mode are (`interleave`); empty leaves their order.

        Raises:
            ValueError: a code outside the vocabulary, embeddings where the vocabulary has no place for them, text with
                lone surrogates, or parts that cannot be interleaved.
        """
        begin, end, ids = self._vocabulary.begin_of_audio, self._vocabulary.end_of_audio, list[int]()
        for part in parts:
            ids += self._encode(part) if isinstance(part, str) else [begin, *self._audio_ids(part), end]
        return interleave(ids, ratio, begin, end) if ratio else ids

    def _audio_ids(self, speech: Speech) -> list[int]:
        if not isinstance(speech, ContinuousSpeech):
            return self._vocabulary.audio_ids(speech)
        if self._vocabulary.context_of_audio is None:
            raise ValueError("this vocabulary has no <|context_of_audio|>: its speech is codes")
        return [self._vocabulary.context_of_audio] * speech.rows

    def conversation(self, turns: Iterable[Turn]) -> tuple[list[int], list[bool]]:
        """Ids of complete turns, and which of them a model must predict.

        These targets are the assistant's content, its <|im_end|> and the line break after it.
        """
        ids: list[int] = []
        targets: list[bool] = []
        for turn in turns:
            opening = self.opening(turn.role)
            written = [*turn.content, *self.closing]
            ids += [*opening, *written]
            targets += [False] * len(opening) + [turn.role == "assistant"] * len(written)
        return ids, targets

    def opening(self, role: str) -> list[int]:
        """Ids in front of a turn's content; a prompt ends with those of the assistant."""
        return [self._vocabulary.im_start, *self._encode(f"{role}\n")]

    @property
    def closing(self) -> list[int]:
        """Ids behind a turn's content."""
        return [self._vocabulary.im_end, *self._encode("\n")]


class PromptBuilder:
    """Writes the prompts of requests for one checkpoint."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._template, self._vocabulary = ChatTemplate(tokenizer), tokenizer.vocabulary

    def build(
        self,
        task: str,
        text: str | None = None,
        speech: Speech | None = None,
        system: str | None = None,
        past: Iterable[int] = (),
    ) -> list[int]:
        """Prompt ids of a request, up to the place where the answer begins.

        Args and errors: `task_turns`, with `speech` in place of `audio`; ValueError too for a code outside the
        vocabulary. `past`: ids of the complete turns before, which then has the system turn, if there is one.
        """
        past = list(past)
        turns = cast("list[tuple[str, tuple[str | Speech, ...]]]", task_turns(task, text, speech, system))
        written = [Turn(role, self._template.content(parts)) for role, parts in (turns[-1:] if past else turns)]
        return [*past, *self._template.conversation(written)[0], *self._template.opening("assistant")]

    def past(self, task: str, messages: Iterable[tuple[str, str]], system: str | None = None) -> list[int]:
        """Ids of complete turns in words, (role, content) each, with the system turn of the task in front.

        Raises:
            ValueError: text with lone surrogates.
        """
        first = [(role, parts[0]) for role, parts in task_turns(task, "", system=system) if role == "system"]
        turns = [Turn(role, self._template.content([content])) for role, content in (*first, *messages)]
        return self._template.conversation(turns)[0]

    def begin(
        self,
        task: str,
        text: str | None = None,
        speech: Speech | None = None,
        system: str | None = None,
        past: Iterable[int] = (),
    ) -> list[int]:
        """As `build`, up to what is there of the user's turn while it goes on: it is worth reading already.

        Without the last id of the content: a word may grow, and audio goes on in place of its end tag.
        """
        ends = len(self._template.closing) + len(self._template.opening("assistant"))
        return self.build(task, text, speech, system, past)[: -ends - 1]
