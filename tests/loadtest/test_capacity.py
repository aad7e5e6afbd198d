"""Search and answer of the capacity: on functions whose limit is known, and on load points made by hand."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loadtest.capacity.__main__ as capacity
import loadtest.capacity.point as point_module
from loadtest.capacity.__main__ import answer, beyond, bottleneck, main, pictures, text
from loadtest.capacity.point import LoadPoint, reason, run_point
from loadtest.capacity.search import Point, SearchResult, search
from loadtest.errors import LoadTestError
from loadtest.generator import GeneratorLoad
from loadtest.options import QUESTION, Settings
from loadtest.record import StreamRecord
from loadtest.report.summary import Run, summary
from loadtest.slo import Slo
from loadtest.tally import Tally
from loadtest_runs import Known

PROMISE = Slo(400.0, 0.02, 0.01)


@given(st.floats(0.3, 90), st.floats(1.05, 1.5))
@settings(max_examples=60, deadline=None)
def test_the_search_closes_in_on_the_true_limit(limit_hz: float, ratio: float) -> None:
    result = search(lambda rate_hz: (rate_hz <= limit_hz, None), 0.25, 100.0, lambda: True, ratio)
    assert result.kept_hz is not None
    assert result.broken_hz is not None
    assert result.kept_hz <= limit_hz < result.broken_hz <= result.kept_hz * ratio
    assert result.stopped == "narrow enough"
    assert len(result.points) <= 9 + 5  # doublings, halvings


@given(st.floats(0.5, 50), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_chance_near_the_limit_moves_the_answer_a_little_only(limit_hz: float, seed: int) -> None:
    random_ = random.Random(seed)

    def probe(rate_hz: float) -> tuple[bool, None]:
        return rate_hz * math.exp(random_.gauss(0, 0.05)) <= limit_hz, None

    result = search(probe, 0.25, 100.0, lambda: True)
    assert result.kept_hz == pytest.approx(limit_hz, rel=0.35)


def test_the_search_stops_by_itself() -> None:
    time_left = iter([True, True, False])
    slow = search(lambda rate_hz: (True, None), 1.0, 1e9, lambda: next(time_left))
    assert (slow.stopped, slow.kept_hz, slow.broken_hz, len(slow.points)) == ("out of time", 4.0, None, 3)
    assert search(lambda rate_hz: (False, None), 1.0, 8.0, lambda: True).stopped == "lowest rate broken"
    strong = search(lambda rate_hz: (True, None), 1.0, 7.0, lambda: True)
    assert (strong.stopped, strong.kept_hz) == ("highest rate kept", 7.0)
    for lowest, highest, ratio in ((0.0, 1.0, 1.1), (2.0, 1.0, 1.1), (1.0, math.inf, 1.1), (1.0, 2.0, 1.0),
                                   (1.0, 2.0, math.nan)):  # fmt: skip
        with pytest.raises(LoadTestError):
            search(lambda rate_hz: (True, None), lowest, highest, lambda: True, ratio)


def load_point(rate_hz: float, folder: Path, ttfa_ms: float = 100.0, rejected: int = 0) -> LoadPoint:
    """A load point in the form of a measured one: 100 s, streams of 4 s, a decoder that takes longer under load."""
    rows = [
        StreamRecord(
            scenario="tts", seed=number, start_s=number / rate_hz, warm_up=False, phase="constant", outcome="done",
            first_pcm_ms=ttfa_ms, ttfa_ms=ttfa_ms, total_ms=4000.0, audio_s=8.0, real_time_factor=0.5,
            stages_ms={"lm": 400.0, "decode_queue": 80 * rate_hz, "decode": 240.0},
        )
        for number in range(round(100 * rate_hz))
    ]  # fmt: skip
    rows += [StreamRecord("tts", 0, 0.0, False, "constant", "rejected", "full", total_ms=5.0) for _ in range(rejected)]
    tally = Tally()
    for row in rows:
        tally.sent(row.start_s)
        tally.over(row, row.start_s + row.total_ms / 1e3, False)
    configured = Settings("localhost:1", run_time_s=100.0, slo=PROMISE)
    figures = summary(Run({}, configured, tally, {"one": GeneratorLoad(0.1, 0.2)}, 100.0, ""))
    return LoadPoint(rate_hz, folder, figures)


def test_the_answer_is_the_highest_rate_that_keeps_the_promise(tmp_path: Path) -> None:
    def probe(rate_hz: float) -> tuple[bool, LoadPoint]:
        point = load_point(rate_hz, tmp_path, ttfa_ms=100 * rate_hz)
        return point.kept, point

    result = search(probe, 0.6, 50.0, lambda: True)
    found = answer(result, [load_point(6.0, tmp_path, 700, rejected=300)], PROMISE, price_per_hour=3.0)
    assert 3.6 < found["capacity_per_s"] <= 4.0 < found["missed_at_per_s"] < 4.5  # TTFA of 400 ms is reached at 4 per s
    assert found["bottleneck"] == "decode"
    assert found["streams_at_once"] == pytest.approx(4 * found["capacity_per_s"], rel=0.02)
    assert found["audio_s_per_s"] == pytest.approx(8 * found["capacity_per_s"], rel=0.02)
    assert found["cost_per_audio_hour"] == pytest.approx(3.0 / found["audio_s_per_s"])
    assert found["overload"][0]["loss_rate"] == pytest.approx(1 / 3)
    assert found["overload"][0]["rejection_p95_ms"] == pytest.approx(5.0, rel=0.02)
    assert json.loads(json.dumps(found)) == found
    printed = text(found)
    for words in ("capacity of one server: 3.", "bottleneck: decode", "narrow enough", "33.3%"):
        assert words in printed
    assert not any(picture.empty for picture in pictures(found).values())


def test_an_answer_without_a_capacity(tmp_path: Path) -> None:
    point = load_point(0.5, tmp_path, ttfa_ms=900)
    found = answer(SearchResult(None, 0.5, (Point(0.5, False, point),), "lowest rate broken"), [], PROMISE, 1.0)
    assert (found["capacity_per_s"], found["streams_at_once"], found["cost_per_audio_hour"]) == (None, None, None)
    assert "capacity of one server: - streams/s (missed at 0.50; the search ended: lowest rate broken)" in text(found)


def test_an_overload_that_breaks_the_server_leaves_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_point(url: str, rate_hz: float, *_: object) -> LoadPoint:
        if rate_hz < 10:
            return load_point(rate_hz, tmp_path)
        assert json.loads((tmp_path / "capacity.json").read_text())["capacity_per_s"] == 8.0
        if rate_hz > 15:
            raise LoadTestError(f"the load point at {rate_hz:.3g} streams/s is not complete: no server")
        return load_point(rate_hz, tmp_path, ttfa_ms=900)

    monkeypatch.setattr(capacity, "run_point", run_point)
    rates = ["--lowest-rate", "4", "--highest-rate", "8"]
    assert main([*rates, "--ttfa-p95-ms", "400", "--overload", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "capacity.json").read_text())
    assert [point["rate_per_s"] for point in found["overload"]] == [12.0]
    assert found["overload_not_measured"] == ["the load point at 16 streams/s is not complete: no server"]
    printed = capsys.readouterr().out
    assert "capacity of one server: 8.00" in printed
    assert "not measured: the load point at 16 streams/s is not complete: no server" in printed


@pytest.mark.parametrize(("kept_hz", "offered_hz"), [(400.0, [600.0, 800.0]), (600.0, [900.0, 1000.0]), (1000.0, [])])
def test_no_overload_is_beyond_what_may_be_offered(kept_hz: float, offered_hz: list[float], tmp_path: Path) -> None:
    offered = list[float]()
    beyond(lambda rate_hz: offered.append(rate_hz) or load_point(1.0, tmp_path), kept_hz)
    assert offered == offered_hz


def test_the_bottleneck_is_the_stage_that_grows() -> None:
    assert bottleneck({"lm": 50.0, "decode": 30.0}, {"lm": 55.0, "decode": 90.0}) == "decode"
    assert bottleneck({}, {}) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lowest-rate", "0"], "--lowest-rate: 0.0 is not valid"),
        (["--highest-rate", "1e9"], "at most 1000"),
        (["--point-seconds", "1"], "--point-seconds"),
        (["--point-seconds", "nan"], "--point-seconds: nan is not valid"),
        (["--budget-seconds", "nan"], "--point-seconds: 40.0 is not valid: it is from 5 to --budget-seconds"),
        (["--point-seconds", "inf", "--budget-seconds", "inf"], "--point-seconds: inf is not valid"),
        (["--url", "example.com:1"], "not on loopback"),
        (["--url", "localhost:1"], "start one with: make serve"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.strip().splitlines()) == 1


def test_a_point_is_measured_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(QUESTION, "me.wav")
    with Known("even", tmp_path) as server:
        point = run_point(server.url, 4.0, 2.0, 0.0, Path("point"), ["--speech", "me.wav"])
    assert point.row()["streams"] > 0
    assert (tmp_path / "point" / "report.json").exists()


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("usage: locust [options]\nlocust: error: unrecognized arguments: --loud\n", "unrecognized arguments: --loud"),
        ("error: --mix: no\n", "--mix: no"),
        ("[2026-11-29 00:00:00,000] host/ERROR/loadtest: --speech: no\nAggregated  4  4  6\n", "--speech: no"),
        ("Traceback\nloadtest.errors.LoadTestError: out: no space\nAggregated  4  4  6\n", "out: no space"),
        ("Aggregated  4  4  6\n", ""),
    ],
)
def test_the_reason_is_an_error_and_never_a_line_of_a_table(printed: str, words: str) -> None:
    assert reason(printed) == words


def test_without_an_error_the_reason_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_module, "_run", lambda *_: (-9, "Aggregated  4  4  6\n"))
    with pytest.raises(LoadTestError, match=r"^the load point at 4 streams/s failed: exit code -9$"):
        run_point("localhost:1", 4.0, 2.0, 0.0, tmp_path, [])
