"""LLaMA Questions, TriviaQA and Web Questions as spoken questions, in the layout of OpenAudioBench.

eval_datas/trivia_qa/trivia_qa.csv has the questions, their answers and audio_filename; the sounds are in audios/.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from evaluation.case import Case
from evaluation.errors import EvaluationError
from evaluation.suites.files import find, lines

#: Folder -> columns that hold answers, and what parts several in one column.
_ANSWERS = {
    "llama_questions": (("answer",), ""),
    "trivia_qa": (("answer_normalized_value", "answer_normalized_aliases"), ","),
    "web_questions": (("answers",), ";"),
}


def reader(name: str) -> Callable[[Path, str], list[Case]]:
    """Reader of one of the three; `name` is its folder."""

    def read(folder: Path, part: str) -> list[Case]:
        path = find(folder, name, *(f"{place}{name}.csv" for place in (f"eval_datas/{name}/", f"{name}/", "")))
        rows = csv.DictReader(io.StringIO("\n".join(line for _, line in lines(path))))
        try:
            cases = [_case(path, name, number, row) for number, row in enumerate(rows, 2)]
        except csv.Error as error:
            raise EvaluationError(f"{path} cannot be read as CSV: {error}") from error
        if not cases:
            raise EvaluationError(f"{path} is empty")
        return cases

    return read


def _case(path: Path, name: str, number: int, row: dict[str, str]) -> Case:
    columns = {str(column).strip().lower(): value or "" for column, value in row.items()}
    names, separator = _ANSWERS[name]
    missing = [column for column in ("audio_filename", *names[:1]) if column not in columns]
    if missing:
        raise EvaluationError(f"{path} is not {name}: there is no column {missing[0]}")
    found = [columns.get(column, "") for column in names]
    parts = [part.strip() for text in found for part in (text.split(separator) if separator else [text])]
    answers = tuple(dict.fromkeys(part for part in parts if part))
    if not answers:
        raise EvaluationError(f"{path}, row {number}: no answer in {' or '.join(names)}")
    question = columns.get("question") or columns.get("questions", "")
    sound = path.parent / "audios" / columns["audio_filename"]
    name = Path(columns["audio_filename"]).stem or str(number)
    return Case(name, "chat", "en", question=question, answers=answers, audio=sound)
