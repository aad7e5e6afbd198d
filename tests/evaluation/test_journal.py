"""The file that a run appends to."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import EvaluationError
from evaluation.journal import Journal

RUN = {"suite": "libritts", "mode": "boost"}


def test_what_was_written_is_there_again_and_a_torn_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    journal = Journal(path, RUN, {"date": "first"})
    journal.add({"id": "a", "skipped": "why"})
    journal.add({"id": "a", "text": "é"})
    with path.open("a") as file:
        file.write('{"id": "b", "te')
    again = Journal(path, RUN, {"date": "second"})
    assert again.entries == {"a": {"id": "a", "text": "é"}}
    assert again.about == {"date": "first"}
    again.add({"id": "b", "text": "x"})
    assert Journal(path, RUN, {}).entries["b"] == {"id": "b", "text": "x"}


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Journal(path, RUN, {})
    with pytest.raises(EvaluationError, match="mode boost, not turbo: choose another --out"):
        Journal(path, {**RUN, "mode": "turbo"}, {})


@pytest.mark.parametrize("text", ["{\n", "[]\n", '{"id": 1}\n', "\x80\n"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"answers\.jsonl"):
        Journal(path, RUN, {})
    assert path.read_bytes() == text.encode("latin-1")
