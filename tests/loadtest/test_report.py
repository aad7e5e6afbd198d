"""Measuring one stream, adding up many over processes, and the report: figures, page, files, comparison."""

from __future__ import annotations

import dataclasses
import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import loadtest.tally
from loadtest.compare import main as compare
from loadtest.driver import Record, Response
from loadtest.errors import LoadTestError
from loadtest.generator import GeneratorLoad
from loadtest.histogram import Histogram
from loadtest.options import Settings
from loadtest.picture import Picture, Series, draw, figure_html
from loadtest.picture import _fill as fill
from loadtest.record import Outcome, StreamRecord
from loadtest.report.files import read_figures, write_report
from loadtest.report.page import page, pictures
from loadtest.report.summary import Run, by_running, over_time, summary
from loadtest.slo import Slo, verdict
from loadtest.tally import MAX_CURVES, MAX_ERRORS, SLOW_READER, Counter, Outbox, Tally
from loadtest.window import Window
from loadtest_runs import read_streams


def stream(number: int, **fields: Any) -> StreamRecord:
    random_ = random.Random(number)
    outcome = random_.choice(get_args(Outcome))
    spoken = outcome in ("done", "interrupted")
    known: dict[str, Any] = {
        "scenario": random_.choice(("tts", "asr", SLOW_READER)), "seed": number, "start_s": random_.uniform(0, 20),
        "warm_up": random_.random() < 0.2, "phase": random_.choice(("20%", "40%")), "outcome": outcome,
        "error": "" if spoken else f"Broken: after {number} responses", "total_ms": random_.uniform(100, 5000),
        "first_pcm_ms": 90.0 if spoken else None, "ttfa_ms": random_.uniform(50, 900) if spoken else None,
        "audio_s": 2.0 if spoken else 0.0, "real_time_factor": 0.5 if spoken else None,
        "underruns": number % 2 if spoken else 0, "underrun_s": number % 2 * 0.25 if spoken else 0.0,
        "gaps_ms": (10.0, 20.0) if spoken else (), "lead": ((0.1, 0.0), (0.1, 1.0)) if spoken else (),
        "stages_ms": {"lm": 3.25},
    }  # fmt: skip
    return StreamRecord(**{**known, **fields})


def count(counter: Counter, streams: list[StreamRecord]) -> None:
    for one in streams:
        counter.sent(one.start_s)
        counter.over(one, one.start_s + one.total_ms / 1e3, unreachable=False)


def tally_of(streams: list[StreamRecord]) -> Tally:
    tally = Tally()
    count(tally, streams)
    return tally


def run_of(streams: list[StreamRecord], aborted: str = "") -> Run:
    settings_ = Settings("localhost:1", users=7, shape="steps", run_time_s=20, slo=Slo(500, 0.1, 0.1))
    load = GeneratorLoad(0.1, 0.2, 0.5, Histogram.of([1.0, 2.0]))
    about = {"command": "locust <script>", "date": "today", "settings": {"loop": "open"}}
    return Run(about, settings_, tally_of(streams), {"this process": load}, 20.0, aborted)


@given(st.lists(st.integers(0, 10_000), max_size=25, unique=True), st.integers(0, 25))
@settings(max_examples=15, deadline=None)
def test_tallies_of_two_processes_add_up_to_the_tally_of_all(numbers: list[int], cut: int) -> None:
    streams = [stream(number) for number in numbers]
    added = Tally()
    for part in (streams[:cut], streams[cut:]):
        outbox = Outbox()
        count(outbox, part)
        added.take_in(json.loads(json.dumps(outbox.take())))
        assert outbox.take() == {"sent": [], "over": []}
    both, one = run_of([]), run_of(streams)
    merged = summary(Run(both.about, both.settings, added, both.generators, 20.0, ""))
    assert json.loads(json.dumps(merged)) == json.loads(json.dumps(summary(one)))
    assert {s.seed for s in added.streams} == set(numbers)


def test_a_worker_sends_few_curves() -> None:
    outbox = Outbox()
    count(outbox, [stream(number, outcome="done", lead=((0.1, 0.0),)) for number in range(MAX_CURVES + 5)])
    assert sum(bool(row["lead"]) for row, *_ in outbox.take()["over"]) == MAX_CURVES


def test_what_counts_and_what_does_not() -> None:
    plain: dict[str, Any] = {"scenario": "tts", "warm_up": False, "error": "", "underruns": 0, "underrun_s": 0.0}
    spoken = {**plain, "outcome": "done", "first_pcm_ms": 90.0, "audio_s": 2.0, "real_time_factor": 0.5}
    total = tally_of(
        [
            stream(1, **spoken, ttfa_ms=100.0),
            stream(2, **{**spoken, "underruns": 2, "underrun_s": 0.5}, ttfa_ms=300.0),
            stream(3, **spoken, ttfa_ms=None),  # samples, all of them silence
            stream(
                4,
                **{**plain, "outcome": "rejected"},
                first_pcm_ms=None,
                ttfa_ms=None,
                audio_s=0.0,
                real_time_factor=None,
            ),
            stream(5, **{**spoken, "warm_up": True}, ttfa_ms=9000.0),
            stream(6, **{**spoken, "scenario": SLOW_READER}, ttfa_ms=9000.0),
        ]
    ).total()
    assert (total.streams, total.lost, total.audio_s, total.underrun_s) == (4, 1, 6.0, 0.5)
    assert {k: total.counts[k] for k in ("spoken", "broken", "silent")} == {"spoken": 3, "broken": 1, "silent": 1}
    assert total.histogram("ttfa").max_ms == pytest.approx(300, rel=0.01)
    checks = {check.name: check for check in verdict(total, Slo(500, 0.5, 0.2))}
    assert [checks[n].kept for n in ("TTFA P95", "underrun rate", "loss rate")] == [True, True, False]
    assert not any(check.kept for check in verdict(Tally().total(), Slo()))  # nothing measured is no promise kept


def test_a_stream_is_measured_from_its_sending_and_its_lateness_apart() -> None:
    # 0.1 s of silence; then sound, 0.2 s late.
    responses = (
        Response(10.2, text=True, tokens=1), Response(10.5, samples=2205, tokens=2),
        Response(10.8, samples=22_050, audible=True, tokens=3, stages_ms={"lm": 5.0}),
    )  # fmt: skip
    blank = StreamRecord("tts", 1, 0.0, False, "constant", "failed")
    record = blank.measured(Record(10.1, 11.0, responses), intended_s=10.0, prebuffer_s=0.0, unfinished=False)
    assert record.start_delay_ms == pytest.approx(100)
    assert (record.first_text_ms, record.first_pcm_ms, record.ttfa_ms) == pytest.approx((100, 400, 700))
    assert (record.underruns, record.underrun_s, record.least_lead_s) == (1, pytest.approx(0.2), pytest.approx(-0.2))
    assert (record.audio_s, record.total_ms, record.tokens, record.responses) == pytest.approx((1.1, 900, 6, 3))
    assert record.real_time_factor == pytest.approx(0.7 / 1.1)
    assert record.gaps_ms == pytest.approx((300,))
    calm = blank.measured(Record(10.1, 11.0, responses), 10.0, prebuffer_s=0.25, unfinished=False)
    assert (calm.underruns, calm.ttfa_ms) == (0, pytest.approx(700))  # a player's buffer is not in the TTFA


@pytest.mark.parametrize(
    ("code", "error", "unfinished", "outcome"),
    [
        ("done", "", False, "done"),
        ("cancelled", "", False, "interrupted"),
        ("cancelled", "", True, "unfinished"),
        ("server_full", "full", False, "rejected"),
        ("shutting_down", "stopping", False, "rejected"),
        ("internal_error", "broken", False, "failed"),
    ],
)
def test_how_a_stream_ended(code: str, error: str, unfinished: bool, outcome: str) -> None:
    blank = StreamRecord("tts", 1, 0.0, False, "constant", "failed")
    assert blank.measured(Record(0.0, 1.0, (), code, error), 0.0, 0.0, unfinished).outcome == outcome


def test_the_real_time_factor_is_shown_as_it_is() -> None:
    measured = summary(run_of([stream(1, outcome="done", warm_up=False, scenario="tts", real_time_factor=0.5)]))
    assert measured["scenarios"]["all"]["metrics"]["rtf"]["p50"] == pytest.approx(0.5, rel=0.01)
    assert "thousandths" not in page([measured])


def test_a_missed_promise_is_said_in_a_line() -> None:
    total = tally_of([stream(1, outcome="done", warm_up=False, scenario="tts", ttfa_ms=400.0)]).total()
    lines = [str(check) for check in verdict(total, Slo(300, 0.001, 0.01))]
    assert lines[0].startswith("SLO MISSED: TTFA P95 40")
    assert lines[0].endswith("ms, promised at most 300 ms")
    assert lines[2] == "SLO kept: loss rate 0 %, promised at most 1 %"


def test_running_streams_and_load_classes() -> None:
    windows = {0: Window(sent=2), 1: Window(over=1, sent=1, offered=1, spoken=1), 3: Window(over=2, offered=1)}
    windows[1].ttfa.record(100)
    assert [row["running"] for row in over_time(windows)] == [2, 2, 2, 0]
    classes = by_running(windows)
    assert [(c["running"], c["streams"]) for c in classes] == [(1.0, 1), (2.0, 1)]
    assert classes[1]["ttfa_p95_ms"] == pytest.approx(100, rel=0.01)


def test_a_long_run_has_wider_windows_not_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadtest.tally, "MAX_WINDOWS", 10)
    streams = [
        stream(second, start_s=float(second), scenario="tts", outcome="done", ttfa_ms=100.0, total_ms=500.0)
        for second in range(75)
    ]
    tally, backwards = tally_of(streams), tally_of(streams[::-1])
    assert (tally.window_s, sorted(tally.windows)) == (8, list(range(0, 80, 8)))
    rows = over_time(tally.windows, tally.window_s)
    assert rows == over_time(backwards.windows, backwards.window_s)
    assert [(row["second"], row["offered"], row["running"]) for row in rows[:2]] == [(0, 1.0, 0), (8, 1.0, 0)]
    assert sum(window.ttfa.count for window in tally.windows.values()) == 75
    assert sum(each["streams"] for each in by_running(tally.windows, tally.window_s)) == 75
    assert sum(window.over for window in tally.last_windows(75, 10)) == 11  # in whole windows: from 64 s on
    figures = summary(dataclasses.replace(run_of([]), tally=tally))
    assert figures["window_s"] == 8
    assert pictures(figures)["ttfa_time"].series[0].name == "P95 of each 8 s"


def test_kinds_of_errors_are_bounded() -> None:
    tally = Tally()
    for number in range(2 * MAX_ERRORS):
        kind = "x" * (number + 1)
        tally.over(stream(number, error=f"Error: {kind} {number}", outcome="failed"), 1.0, False)
    assert len(tally.errors) == MAX_ERRORS + 1
    assert sum(tally.errors.values()) == 2 * MAX_ERRORS


class _Tags(HTMLParser):
    """Checks that tags close in order, and finds what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href") and not str(value).startswith("data:")]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href") and not str(value).startswith("data:")]


def test_a_report_is_whole_and_reads_back(tmp_path: Path) -> None:
    streams = [stream(number) for number in range(60)]
    write_report(tmp_path / "a", run_of(streams))
    write_report(tmp_path / "b", run_of(streams[:20], aborted="stopped after 3 s"))
    made = (tmp_path / "a" / "report.html").read_text()
    tags = _Tags()
    tags.feed(made)
    assert (tags.open, tags.links) == ([], [])
    assert made.count("data:image/svg+xml") == 6
    files = sorted(path.name for path in (tmp_path / "a").glob("*.svg"))
    assert files == ["lead.svg", "streams.svg", "ttfa.svg", "ttfa_load.svg", "ttfa_time.svg", "underruns.svg"]
    for name in files:
        ElementTree.fromstring((tmp_path / "a" / name).read_text())
    assert "locust &lt;script&gt;" in made
    assert "<script" not in made
    assert "stopped after 3 s" in (tmp_path / "b" / "report.html").read_text()

    figures = read_figures(tmp_path / "a")
    assert sum(figures["scenarios"][name]["streams"] for name in ("tts", "asr")) == figures["streams"]["measured"]
    assert figures["scenarios"]["all"]["stages_ms_per_audio_s"]["lm"] == pytest.approx(3.25 / 2.0)
    assert figures["streams"]["at_once"] > 0
    # A fifth and two fifths of 7 users with 0.1 streams per second each: there are no parts of users.
    assert [phase["offered_per_s"] for phase in figures["phases"]] == pytest.approx([0.1, 0.3])
    back = read_streams(tmp_path / "a")
    assert len(back) == 60
    assert back[3].ttfa_ms == pytest.approx(streams[3].ttfa_ms, abs=1e-3)
    assert (back[3].outcome, back[3].stages_ms, back[3].warm_up) == (
        streams[3].outcome,
        {"lm": 3.25},
        streams[3].warm_up,
    )
    assert (
        Histogram.from_text(figures["histograms"]["ttfa"]).count
        == figures["scenarios"]["all"]["metrics"]["ttfa"]["count"]
    )

    out = tmp_path / "compared.html"
    assert compare([str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(out)]) == 0
    assert out.read_text().count("data:image/svg+xml") == 12


def test_a_report_of_nothing(tmp_path: Path) -> None:
    write_report(tmp_path, run_of([], aborted="no server"))
    assert "nothing was measured" in (tmp_path / "report.html").read_text()
    assert read_streams(tmp_path) == []
    assert not list(tmp_path.glob("*.svg"))


def test_files_that_are_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(tmp_path), "-o", str(tmp_path / "x.html")]) == 2
    assert "name the folder of a finished run" in capsys.readouterr().err
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(LoadTestError, match="not the report"):
        read_figures(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadTestError, match="could not be written"):
        write_report(tmp_path / "file", run_of([]))


def svg(*pictures: Picture) -> ElementTree.Element:
    return ElementTree.fromstring(draw(*pictures))


def test_a_picture_is_svg_and_equal_data_give_equal_bytes() -> None:
    picture = Picture("A <title>", "s", "ms", [Series("one", [(0, 1), (1, 2)], dots=True)], limit=(1.5, "promise"))
    assert svg(picture).tag.endswith("svg")
    assert draw(picture) == draw(picture)
    assert draw(picture, form="png").startswith(b"\x89PNG")
    wide, narrow = (svg(*made).get("width", "").removesuffix("pt") for made in ((picture, picture), (picture,)))
    assert float(wide) == pytest.approx(2 * float(narrow))
    assert "A &lt;title&gt;" in figure_html(picture)


def axes_of(picture: Picture) -> Any:
    axes = Figure().subplots()
    fill(axes, picture)
    return axes


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)), min_size=1, max_size=20))
@settings(max_examples=25, deadline=None)
def test_axes_begin_at_0_percent_ends_at_100_and_ticks_are_plain(points: list[tuple[float, float]]) -> None:
    axes = axes_of(Picture("", "ms", "% of streams", [Series("", points)]))
    low, high = axes.get_ylim()
    assert (low, axes.get_xlim()[0]) == (0, 0)
    assert max(y for _, y in points) <= high <= 100
    axes.figure.canvas.draw()
    assert not any("e+" in label.get_text() for label in axes.get_xticklabels())


def test_a_legend_has_each_name_once_with_its_colour() -> None:
    lines = [Series("a", [(0, 1), (1, 1)]), Series("a", [(0, 2), (1, 2)]), Series("b", [(0, 3)]), Series("c", [])]
    axes = axes_of(Picture("", "s", "ms", lines, limit=(2.0, "promise")))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "promise"]
    first, second, third = axes.get_lines()[:3]
    assert first.get_color() == second.get_color() != third.get_color()
    assert axes_of(Picture("", "s", "ms", [Series("", [(0, 1)])])).get_legend() is None


def test_a_picture_of_nothing() -> None:
    nothing = Picture("empty", "s", "ms", [Series("none", [])])
    assert axes_of(nothing).texts[0].get_text() == "nothing was measured"
    assert "nothing was measured" in figure_html(nothing)
