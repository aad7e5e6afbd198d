"""LibriTTS (openslr.org/60), its texts read aloud: test-clean/1089/134686/1089_134686_000001_000001.normalized.txt."""

from __future__ import annotations

from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import find, lines

_ENDING = ".normalized.txt"


def read(folder: Path, part: str) -> list[Case]:
    """`part`: test-clean."""
    root = find(folder, "LibriTTS", f"LibriTTS/{part}", part)
    cases = []
    for path in sorted(root.glob(f"*/*/*{_ENDING}")):
        text = " ".join(line for _, line in lines(path))
        cases.append(Case(path.name.removesuffix(_ENDING), "tts", "en", text))
    if not cases:
        raise EvaluationError(f"{root} is not LibriTTS: there is no SPEAKER/CHAPTER/*{_ENDING} in it")
    return cases
