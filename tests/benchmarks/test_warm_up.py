"""What first requests cost: medians by request, first against later; a client that asks a known server."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving import STAGES
from benchmarks.warm_up import LATER, ask, shown, summarise
from loadtest_runs import Known
from vita_audio.contract.errors import VitaError


def test_medians_are_of_the_same_request_of_every_server() -> None:
    stages = dict.fromkeys(STAGES, 1.0)
    starts = [[[(200.0 + server, stages)], *[[(100.0, stages)]] * (LATER - 1)] for server in (0, 10, 90)]
    made = summarise(starts)
    assert made["ttfa_ms"] == [210, *[100] * (LATER - 1)]
    assert made["first_to_later"] == pytest.approx(2.1)
    assert made["rest_ms"][0] == pytest.approx(210 - len(STAGES))
    assert made["stages_ms"] == {stage: [1.0] * LATER for stage in STAGES}
    lines = shown({"request": "text", "client": "used", "streams": 1, "rounds": LATER, **made})
    assert [line[3:5] for line in lines] == [["1", "210"], ["2", "100"], [str(LATER), "100"]]
    assert [line[-1] for line in lines] == ["", "", "2.10"]


def test_a_round_is_of_simultaneous_requests(tmp_path: Path) -> None:
    with Known("even", tmp_path) as server:
        rounds = ask(server.url, "tts", 3, 2, 50, connect=True)
    assert [len(each) for each in rounds] == [3, 3]
    assert all(ttfa_ms >= 50 for each in rounds for ttfa_ms, _ in each)


def test_a_server_that_is_not_there_is_no_measurement() -> None:
    with pytest.raises(VitaError, match="a stream brought no sound"):
        ask("localhost:1", "tts", 1, 1, 50, connect=False)
