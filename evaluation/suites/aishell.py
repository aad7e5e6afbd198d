"""AISHELL-1 (openslr.org/33): data_aishell/transcript/aishell_transcript_v0.8.txt, data_aishell/wav/test/S0764."""

from __future__ import annotations

from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import find, lines, split

#: BAC009S0764W0121: the speaker follows the corpus. The test's are S0764 to S0916, the last of the corpus.
_SPEAKER = slice(6, 11)
_FIRST = "S0764"


def read(folder: Path, part: str) -> list[Case]:
    """`part`: test. The transcripts are of all parts, so that a speaker whose archive is not unpacked is missing."""
    transcripts = find(
        folder, "AISHELL-1", *(f"{base}transcript/aishell_transcript_v0.8.txt" for base in ("data_aishell/", ""))
    )
    sounds = find(transcripts.parent.parent, "AISHELL-1", f"wav/{part}")
    cases = []
    for number, line in lines(transcripts):
        name, words = split(transcripts, number, line, None, 2, 1)
        if (speaker := name[_SPEAKER]) >= _FIRST:
            cases.append(Case(name, "asr", "zh", words, audio=sounds / speaker / f"{name}.wav"))
    if not cases:
        raise EvaluationError(f"{transcripts} has no speaker from {_FIRST} on")
    if not any(path.is_dir() for path in sounds.iterdir()):
        raise EvaluationError(f"{sounds} has no folder of a speaker: unpack wav/*.tar.gz first")
    return cases
