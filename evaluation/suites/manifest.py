"""Data of one's own: JSON lines with the keys kind (asr, tts, qa), language (en, zh), text, audio, answers and id.

asr needs audio and text, tts text, qa audio and answers. Paths are relative to the file; without "id" it is the line's
number, without "language" en.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.case import LANGUAGES, Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import lines

_TASKS = {"asr": "asr", "tts": "tts", "qa": "chat"}
_NEEDED = {"asr": ("audio", "text"), "tts": ("text",), "qa": ("audio", "answers")}
_KEYS = {"id", "kind", "language", "text", "audio", "answers"}


def read(file: Path, part: str) -> list[Case]:
    """`file`: the manifest, or a folder with manifest.jsonl in it."""
    path = file / "manifest.jsonl" if file.is_dir() else file
    cases = [_case(path, number, line) for number, line in lines(path)]
    if not cases:
        raise EvaluationError(f"{path} is empty")
    return cases


def _case(path: Path, number: int, line: str) -> Case:
    def wrong(what: str) -> EvaluationError:
        return EvaluationError(f"{path}, line {number}: {what}")

    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise wrong(f"no JSON: {error}") from error
    if not isinstance(entry, dict) or (unknown := sorted(entry.keys() - _KEYS)):
        raise wrong(f"unknown key {unknown[0]}" if isinstance(entry, dict) else "no JSON object")
    kind, language = entry.get("kind"), entry.get("language", "en")
    if not isinstance(kind, str) or kind not in _TASKS:
        raise wrong(f"kind {kind!r} is not valid: it is {', '.join(_TASKS)}")
    if language not in LANGUAGES:
        raise wrong(f"language {language!r} is not valid: it is {', '.join(LANGUAGES)}")
    missing = [key for key in _NEEDED[kind] if not entry.get(key)]
    if missing:
        raise wrong(f"{kind} needs {missing[0]}")
    text, audio, answers = entry.get("text") or "", entry.get("audio"), entry.get("answers") or []
    if not isinstance(text, str) or not isinstance(audio or "", str):
        raise wrong("text and audio are strings")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise wrong("answers is a list of strings")
    sound = path.parent / audio if audio and kind != "tts" else None
    reference, question = ("", text) if kind == "qa" else (text, "")
    name = str(entry.get("id", number))
    return Case(name, _TASKS[kind], language, reference, question, tuple(answers), sound)
