"""What measurements keep: heads, records written as they come, percentiles; closed-loop callers on a known server."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.closed_loop import Callers, request_for
from benchmarks.record import Results, cells, markdown_table, number, percentile, record_head, spread
from benchmarks.serving import STAGES, hop_ms, summarise
from loadtest.driver import Record, Response
from loadtest_runs import Known, wait_for
from vita_audio.machine import ROOT
from vita_client.request import Request


def test_a_head_names_command_machine_date_and_revision() -> None:
    made = record_head("benchmarks.soak", ["--out", f"{ROOT}/out/a b.json"])
    assert made["command"] == "python -m benchmarks.soak --out 'out/a b.json'"  # no folder of this machine
    assert set(made) == {"command", "machine", "date", "revision"}
    assert made["date"].endswith("+00:00")
    assert record_head("x", [], machine="a GPU")["machine"] == "a GPU"


def test_results_are_on_disk_after_each_change(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    results = Results(path, {"a": 1})
    results.save(rows=[1])
    assert json.loads(path.read_text()) == results.fields == {"a": 1, "rows": [1]}
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Results(tmp_path / "file" / "record.json", {})
    Results(None, {}).save(rows=[])


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=20))
def test_percentiles_are_of_what_is_known(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    assert percentile(values, 50) == (pytest.approx(np.percentile(known, 50)) if known else None)
    assert set(spread("x", values)) == {"x_p50", "x_p95"}


def test_cells_by_a_spec() -> None:
    row = {"mode": "boost", "ms": 1.256, "share": 0.125, "count": 3}
    assert cells(row, "mode ms:1 share:% count gone:2") == ["boost", "1.3", "12.5 %", "3", "-"]
    assert cells({"share": 1.0}, "share:% x", "not measured") == ["100 %", "not measured"]


def test_numbers_and_tables() -> None:
    assert [number(None), number(1.25, 1, " ms"), number(None, missing="none")] == ["-", "1.2 ms", "none"]
    assert markdown_table("a|b", [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_callers_send_one_request_after_the_other(tmp_path: Path) -> None:
    def request(caller: int, number: int) -> Request:
        return request_for("tts", None, 100 * caller + number, 50)

    with Known("even", tmp_path) as server:
        with Callers(server.url, 2, request, requests=3) as callers:
            pass
        wait_for(lambda: len(server.sent()) == 6)
        sent = server.sent()
        with Callers(server.url, 1, request) as endless:
            while not endless.records:
                pass
    assert sorted(sent) == [0, 1, 2, 100, 101, 102]
    assert [record.code for record in callers.records] == ["done"] * 6
    begun = sorted((sent[n]["received_s"], sent[n]["sent_s"][-1]) for n in (0, 1, 2))
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(begun))
    assert len(endless.records) >= 1


def test_what_ends_a_caller_is_raised() -> None:
    def request(caller: int, number: int) -> Request:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Callers("localhost:1", 1, request, requests=1):
        pass


def test_a_row_of_the_serving_table() -> None:
    stages = dict.fromkeys(STAGES, 10.0)
    later = {**stages, "lm": 50.0, "decode": 30.0}
    responses = (
        Response(0.07, samples=11_025, audible=True, tokens=10, stages_ms=stages),
        Response(0.12, samples=11_025, audible=True, tokens=30, stages_ms=later),
    )
    record = Record(0.0, 0.125, responses)
    # 70 ms less 60 of the stages; 120 ms less 80 before the decoder and 20 of its own for this response.
    assert hop_ms(record) == pytest.approx((10 + 20) / 2)
    row = summarise("boost", 1, [record], 0.5)
    assert (row["ttfa_ms_p50"], row["rtf_p50"], row["audio_s_per_s"]) == pytest.approx((70, 0.12, 2))
    assert (row["tokens_per_s_all"], row["lm_tokens_per_s_stream"]) == pytest.approx((80, 800))
    assert (row["first_lm_ms"], row["first_hops_ms"]) == pytest.approx((10, 10))
