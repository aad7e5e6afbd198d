"""Both speech inputs are measured at every length, and what cannot be measured is refused."""

from __future__ import annotations

import re

import pytest

from benchmarks.speech_encoders import main


def test_both_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--threads", "1", "--seconds", "1.5", "3", "--repeats", "1"]) == 0
    command, *table = capsys.readouterr().out.splitlines()
    assert command.startswith("`python -m benchmarks.speech_encoders --tiny")
    assert [re.sub(r"\d+ ", "N ", row) for row in table if row][2:] == ["| 1.N | N | N | N |", "| N | N | N | N |"]


@pytest.mark.parametrize("options", [["--threads", "0"], ["--repeats", "0"], ["--seconds", "1"], ["--seconds", "31"]])
def test_what_cannot_be_measured_is_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tiny", *options])
