"""The host's part of a step: both ways to sample are measured, and what cannot be measured is refused."""

from __future__ import annotations

import re

import pytest

from benchmarks.step_on_host import main


def test_both_ways_to_sample_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--streams", "3", "--repeats", "1"]) == 0
    machine, *rows = capsys.readouterr().out.splitlines()
    assert machine.endswith("3 streams")
    assert [re.sub(r"\d+", "N", row) for row in rows] == ["greedy: N us a step", "sampled: N us a step"]


@pytest.mark.parametrize("option", ["--streams", "--repeats"])
def test_none_is_refused(option: str) -> None:
    with pytest.raises(SystemExit):
        main([option, "0"])
