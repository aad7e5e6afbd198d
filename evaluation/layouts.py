"""Writes the held-out data of a training in the layouts of published suites, to try those without their data.

LibriSpeech (recognition), LibriTTS (reading aloud) and Web Questions (spoken questions), in one folder.
"""

from __future__ import annotations

import csv
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from training.data.answers import WHOLE, words_of
from vita_audio.checkpoint.file_records import whole_folder

_PART = "test-clean"
_MARK = "generated.txt"
_NOTE = "generated speech in the layout of this suite: not the benchmark, so the paper's numbers do not stand beside it"


def write_layouts(cases: Sequence[Case], out: Path) -> None:
    """Write the cases that are asr, tts or spoken, each into its suite; `out` is written whole or not at all.

    Raises:
        EvaluationError: `out` is not empty or cannot be written.
    """
    with whole_folder(out, EvaluationError) as folder:
        (folder / _MARK).write_text(f"{_NOTE}\n", encoding="utf-8")
        _librispeech([case for case in cases if case.kind == "asr"], folder / "LibriSpeech" / _PART)
        _libritts([case for case in cases if case.kind == "tts"], folder / "LibriTTS" / _PART)
        _web_questions([case for case in cases if case.kind == "spoken"], folder / "eval_datas" / "web_questions")


def generated(data: Path) -> str:
    """What a report says of a folder that `write_layouts` wrote; "" of any other."""
    data = data.resolve()  # a suite's own folder in it, or a part of that, may have been named
    return _NOTE if any((folder / _MARK).is_file() for folder in (data, *data.parents[:3])) else ""


def _number(case: Case) -> str:
    """In a file's name: of what the case says, so that answers to other data are never taken for answers to it."""
    return f"{zlib.crc32(repr((case.id, case.reference, case.question)).encode()):010}"


def _librispeech(cases: Sequence[Case], folder: Path) -> None:
    """A speaker a voice; transcripts in capitals without punctuation, as published."""
    voices = sorted({case.voice for case in cases})
    for speaker, voice in enumerate(voices, 1):
        chapter = folder / str(speaker) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for case in (case for case in cases if case.voice == voice):
            name = f"{speaker}-1-{_number(case)}"
            lines.append(f"{name} {' '.join(words_of(case.reference)).upper()}\n")
            shutil.copyfile(_sound(case), chapter / f"{name}.flac")
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines), encoding="utf-8")


def _libritts(cases: Sequence[Case], folder: Path) -> None:
    chapter = folder / "1" / "1"
    chapter.mkdir(parents=True)
    for case in cases:
        text = f"{case.reference}\n"
        (chapter / f"1_1_{_number(case)}_000000.normalized.txt").write_text(text, encoding="utf-8")


def _web_questions(cases: Sequence[Case], folder: Path) -> None:
    (folder / "audios").mkdir(parents=True)
    with (folder / "web_questions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answers", "audio_filename"])
        for case in cases:
            shutil.copyfile(_sound(case), folder / "audios" / f"{_number(case)}.flac")
            answers = "; ".join(answer.lstrip(WHOLE) for answer in case.answers)
            writer.writerow([case.question, answers, f"{_number(case)}.flac"])


def _sound(case: Case) -> Path:
    assert case.audio is not None  # of what is spoken
    return case.audio
