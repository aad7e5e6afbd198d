"""The two manifests of a data folder: `speech.jsonl` (what was said) and `chat.jsonl` (the authors' message format).

DATA/speech.jsonl   {"id", "audio", "text", "voice", "split", "seconds"}
DATA/chat.jsonl     {"id", "task", "family", "split", "messages", "audios", ...}: one "<|audio|>" in the messages for
                    each path in `audios`, in order. Questions also have "question", "accepted", "fact", "held_out".
Paths are relative to DATA, sounds are 16 kHz mono FLAC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.files import whole_file

SPEECH, CHAT = "speech.jsonl", "chat.jsonl"


@dataclass(frozen=True, slots=True)
class SpeechClip:
    """One sound file and its words. `seconds`: its length."""

    id: str
    audio: str
    text: str
    voice: str
    split: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ChatSample:
    """One conversation.

    `messages`: [{"role", "content"}]; an assistant's content "text<|audio|>" is to be interleaved. `accepted`: the
    answer is right if its words end with one of these phrases ("^": are this phrase; see `answers.is_right`); empty
    where there is nothing to ask, or several things (those of a dialogue are in `turns`). `held_out` (test split):
    which part training never saw: "sentence", "question", "phrasing", "fact" or "thread".
    """

    id: str
    task: str  # chat, tts, asr, text: the public contract's tasks; dialogue: several turns; copy: only to learn from
    family: str
    split: str
    messages: tuple[dict[str, str], ...]
    audios: tuple[str, ...] = ()
    question: str = ""
    answer: str = ""
    accepted: tuple[str, ...] = ()
    fact: str = ""
    held_out: str = ""
    voice: str = ""  # of the user, where the user speaks
    turns: tuple[dict[str, Any], ...] = ()  # of a dialogue: `dialogues.Exchange`, each with its fields


def write_lines(path: Path, records: Iterable[SpeechClip | ChatSample]) -> None:
    """Write a manifest: under a temporary name, then renamed."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


def read_speech(folder: Path, split: str | None = None) -> list[SpeechClip]:
    """The clips of DATA/speech.jsonl, of one split or of both. Raises TrainingError naming file and line."""
    clips = [_build(SpeechClip, *line) for line in _lines(folder / SPEECH)]
    return [clip for clip in clips if split in (None, clip.split)]


def read_chat(folder: Path, split: str | None = None) -> list[ChatSample]:
    """The samples of DATA/chat.jsonl, of one split or of both. Raises TrainingError naming file and line."""
    samples = [_build(ChatSample, *line) for line in _lines(folder / CHAT)]
    return [sample for sample in samples if split in (None, sample.split)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, fields) of each line."""
    if not path.is_file():
        raise TrainingError(f"{path} does not exist: make it with python -m training --only data")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise TrainingError(f"{place}: not JSON ({error})") from error
            if not isinstance(fields, dict):
                raise TrainingError(f"{place}: a JSON object is expected, not {type(fields).__name__}")
            yield place, fields


def _build(kind: Any, place: str, fields: dict[str, Any]) -> Any:
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except TypeError as error:
        raise TrainingError(f"{place}: {error}") from error
