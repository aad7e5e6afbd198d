"""LibriSpeech (openslr.org/12): test-clean/1089/134686/1089-134686.trans.txt beside its .flac files."""

from __future__ import annotations

from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import find, lines, split


def read(folder: Path, part: str) -> list[Case]:
    """`part`: test-clean or test-other."""
    root = find(folder, "LibriSpeech", f"LibriSpeech/{part}", part)
    cases = []
    for path in sorted(root.glob("*/*/*.trans.txt")):
        for number, line in lines(path):
            name, words = split(path, number, line, None, 2, 1)
            cases.append(Case(name, "asr", "en", words, audio=path.parent / f"{name}.flac"))
    if not cases:
        raise EvaluationError(f"{root} is not LibriSpeech: there is no SPEAKER/CHAPTER/*.trans.txt in it")
    return cases
