"""FLEURS (google/fleurs): data/en_us/test.tsv and data/en_us/audio/test/*.wav, unpacked from audio/test.tar.gz."""

from __future__ import annotations

from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import find, lines, split

_FOLDERS = {"en": "en_us", "zh": "cmn_hans_cn"}


def read(folder: Path, part: str) -> list[Case]:
    """`part`: en or zh. Columns: id, file, transcript as written, transcript, ...; a sentence has several speakers."""
    language = _FOLDERS[part]
    root = find(folder, "FLEURS", f"data/{language}", language)
    table = find(root, "FLEURS", "test.tsv")
    sounds = next((place for place in (root / "audio" / "test", root / "test") if place.is_dir()), None)
    if sounds is None:
        raise EvaluationError(f"{root} has no audio/test: unpack audio/test.tar.gz there")
    cases = []
    for number, line in lines(table):
        columns = split(table, number, line, "\t", 4)
        cases.append(Case(Path(columns[1]).stem, "asr", part, columns[2], audio=sounds / columns[1]))
    if not cases:
        raise EvaluationError(f"{table} is empty")
    return cases
