"""AISHELL-1 (openslr.org/33): data_aishell/transcript/aishell_transcript_v0.8.txt, data_aishell/wav/test/S0764."""

from __future__ import annotations

from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import find, lines, split

#: BAC009S0764W0121: the speaker follows the corpus.
_SPEAKER = slice(6, 11)


def read(folder: Path, part: str) -> list[Case]:
    """`part`: test. The transcripts are of all parts: a test case is one whose speaker has a folder in it."""
    transcripts = find(
        folder, "AISHELL-1", *(f"{base}transcript/aishell_transcript_v0.8.txt" for base in ("data_aishell/", ""))
    )
    sounds = find(transcripts.parent.parent, "AISHELL-1", f"wav/{part}")
    speakers = {path.name for path in sounds.iterdir() if path.is_dir()}
    cases = []
    for number, line in lines(transcripts):
        name, words = split(transcripts, number, line, None, 2, 1)
        if (speaker := name[_SPEAKER]) in speakers:
            cases.append(Case(name, "asr", "zh", words, audio=sounds / speaker / f"{name}.wav"))
    if not cases:
        raise EvaluationError(f"{sounds} has no folder of a speaker in {transcripts.name}; unpack wav/*.tar.gz first")
    return cases
