"""Conversations in the authors' JSON lines (messages + audios), checked line by line before any training.

    {"messages": [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "It is ten.<|audio|>"}],
     "audios": ["question.flac", "answer.flac"]}

One <|audio|> in the messages for each path of `audios`, in order; paths are relative to the file of lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from training.errors import TrainingError
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.text.chat_template import AUDIO_PLACEHOLDER, ROLES

#: Optional keys beside messages and audios; all but id, task and split are notes that training does not read.
_OPTIONAL_TEXT = ("id", "task", "family", "split", "question", "answer", "fact", "held_out", "voice")
_KNOWN_KEYS = {"messages", "audios", "accepted", "turns", *_OPTIONAL_TEXT}
_LISTED_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: role and content with placeholders."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One checked line. `place`: file and line number, for errors; `task`, `split`: empty where the line has none."""

    place: str
    task: str
    split: str
    messages: tuple[Message, ...]
    audios: tuple[Path, ...]


def read_conversations(path: Path, split: str | None = None, max_audio_s: float = 300.0) -> list[Conversation]:
    """All conversations of a file, or those of one split (lines without "split" are of every split).

    Raises:
        TrainingError: the file is missing or empty, or lines are wrong: not JSON, unknown keys, missing, empty or
            over-long audio, placeholders that do not match the audios, roles out of order, empty answers. Faults
            are listed with their lines.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: no such file; give a file of JSON lines with messages and audios")
    faults: list[str] = []
    conversations = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path.name} line {number}"
            found = len(faults)
            fields = _fields(line, place, faults)
            if len(faults) == found and split in (None, fields.get("split", split)):
                conversation = _conversation(fields, place, path.parent, max_audio_s, faults)
                if len(faults) == found:
                    conversations.append(conversation)
    raise_faults(path, faults)
    if not conversations:
        raise TrainingError(f"{path}: holds no conversations" + (f" of the split {split!r}" if split else ""))
    return conversations


def raise_faults(path: Path, faults: Sequence[str]) -> None:
    """One error with the first faults and their number, if there are any."""
    if faults:
        shown = "\n  ".join(faults[:_LISTED_FAULTS])
        more = f"\n  ... and {len(faults) - _LISTED_FAULTS} more" if len(faults) > _LISTED_FAULTS else ""
        raise TrainingError(f"{path}: {len(faults)} fault{'s' if len(faults) > 1 else ''}\n  {shown}{more}")


def _fields(line: bytes, place: str, faults: list[str]) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except ValueError as error:
        faults.append(f"{place}: not JSON in UTF-8 ({error})")
        return {}
    if not isinstance(fields, dict):
        faults.append(f"{place}: a JSON object is expected, not {type(fields).__name__}")
        return {}
    if unknown := sorted(set(fields) - _KNOWN_KEYS):
        faults.append(f"{place}: unknown keys {', '.join(unknown)}; allowed are {', '.join(sorted(_KNOWN_KEYS))}")
    faults += [
        f"{place}: {name} is {fields[name]!r}, must be a string"
        for name in _OPTIONAL_TEXT
        if not isinstance(fields.get(name, ""), str)
    ]
    return fields


def _conversation(
    fields: dict[str, Any], place: str, folder: Path, max_audio_s: float, faults: list[str]
) -> Conversation:
    messages = _messages(fields.get("messages"), place, faults)
    audios = fields.get("audios", [])
    if not isinstance(audios, list) or not all(isinstance(audio, str) and audio for audio in audios):
        faults.append(f"{place}: audios is {audios!r:.60}, must be a list of paths")
        audios = []
    placeholders = sum(message.content.count(AUDIO_PLACEHOLDER) for message in messages)
    if placeholders != len(audios):
        faults.append(f"{place}: {placeholders} {AUDIO_PLACEHOLDER} in the messages but {len(audios)} audios")
    paths = tuple(folder / audio for audio in audios)
    for audio in paths:
        if fault := _audio_fault(audio, max_audio_s):
            faults.append(f"{place}: {fault}")
    return Conversation(place, fields.get("task", ""), fields.get("split", ""), messages, paths)


def _messages(value: Any, place: str, faults: list[str]) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        faults.append(f"{place}: messages is missing or empty; it is a list of {{role, content}}")
        return ()
    messages = []
    for index, item in enumerate(value):
        fine = isinstance(item, dict) and set(item) == {"role", "content"}
        if not fine or item["role"] not in ROLES or not isinstance(item["content"], str):
            faults.append(
                f"{place}: message {index} must have a role of {', '.join(ROLES)} and a content, nothing else"
            )
            return ()
        messages.append(Message(item["role"], item["content"]))
    turns = [message.role for message in messages]
    turns = turns[1:] if turns[0] == "system" else turns
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        faults.append(f"{place}: roles must be user, assistant, user, assistant, ... after at most one system message")
    for index, message in enumerate(messages):
        try:
            message.content.encode("utf-8")
        except UnicodeEncodeError:
            faults.append(f"{place}: message {index} has a lone surrogate, so it is not valid Unicode")
        if message.role != "system" and not message.content.strip():
            faults.append(f"{place}: message {index} ({message.role}) is empty")
        if message.role == "assistant" and message.content.count(AUDIO_PLACEHOLDER) > 1:
            faults.append(f"{place}: message {index} has more than one {AUDIO_PLACEHOLDER}; an answer has at most one")
    return tuple(messages)


def _audio_fault(path: Path, max_audio_s: float) -> str | None:
    if not path.is_file():
        return f"audio {path} is missing"
    try:
        info = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        return f"audio {path} cannot be read ({str(error).splitlines()[0]})"
    if info.frames * INPUT_SAMPLE_RATE_HZ < info.samplerate:  # less than one sample at 16 kHz
        return f"audio {path} is empty"
    seconds = info.frames / info.samplerate
    if seconds > max_audio_s:
        return f"audio {path} lasts {seconds:.1f} s, more than {max_audio_s:g} s; cut it or raise the limit"
    return None
