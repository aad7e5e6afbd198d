"""Seed-TTS-eval: en/meta.lst, zh/meta.lst, zh/hardcase.lst; a line is name|prompt's text|prompt's sound|text to say.

The text is said in the checkpoint's own voice: the prompt's voice is not cloned, and likeness to it is not scored.
"""

from __future__ import annotations

from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import find, lines, split

_LISTS = {"en": "en/meta.lst", "zh": "zh/meta.lst", "hard": "zh/hardcase.lst"}


def read(folder: Path, part: str) -> list[Case]:
    """`part`: en, zh or hard."""
    name = _LISTS[part]
    path = find(folder, "Seed-TTS-eval", f"seedtts_testset/{name}", name)
    cases = []
    for number, line in lines(path):
        columns = split(path, number, line, "|", 4)
        cases.append(Case(Path(columns[0]).stem, "tts", "en" if part == "en" else "zh", columns[3]))
    if not cases:
        raise EvaluationError(f"{path} is empty")
    return cases
