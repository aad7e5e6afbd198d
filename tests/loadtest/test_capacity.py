"""Search and model of the capacity on simulated servers whose answer is known."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.capacity.__main__ import main
from loadtest.capacity.answer import Limits, answer, bottleneck, page, text
from loadtest.capacity.model import LEAST_STREAMS, Observation, ServerModel, capacity_hz, fit, predict
from loadtest.capacity.probe import LoadPoint
from loadtest.capacity.search import Point, SearchResult, search
from loadtest.errors import LoadTestError
from loadtest.generator import GeneratorLoad
from loadtest.options import Settings
from loadtest.record import StreamRecord
from loadtest.report.summary import Run, summary
from loadtest.slo import Slo
from loadtest.tally import Tally
from loadtest_simulated_server import Simulated

PROMISE = (0.4e3, 0.02, 0.01)  # TTFA P95 in ms, underruns, losses


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
    for lowest, highest, ratio in ((0.0, 1.0, 1.1), (2.0, 1.0, 1.1), (1.0, math.inf, 1.1), (1.0, 2.0, 1.0)):
        with pytest.raises(LoadTestError):
            search(lambda rate_hz: (True, None), lowest, highest, lambda: True, ratio)


def test_the_model_finds_the_server_it_was_shown() -> None:
    server = Simulated()
    shown = [o for rate_hz in (0.3, 0.8, 1.1) for o in server.run(rate_hz, 150, seed=1)[0]]
    model = fit(shown, server.slots, server.queue)
    assert model.more_s == pytest.approx(server.more_s, rel=0.15)
    assert model.alone_s == pytest.approx(server.alone_s, abs=0.02)
    assert model.first_s == pytest.approx(server.first_s, rel=0.15)
    assert model.first_more_s == pytest.approx(server.first_more_s, rel=0.15)
    assert model.spread == pytest.approx(server.spread, rel=0.25)


@pytest.mark.parametrize("rate_hz", [0.6, 1.0, 1.3, 1.6])
def test_the_model_predicts_loads_it_was_not_shown(rate_hz: float) -> None:
    server = Simulated(sound_s=6.0)
    shown = [o for shown_hz in (0.3, 0.8, 1.2) for o in server.run(shown_hz, 200, seed=2)[0]]
    model = fit(shown, server.slots, server.queue)
    seen, refused = server.run(rate_hz, 3000, seed=3)
    said = predict(model, rate_hz)
    ttfa_ms = np.array([o.ttfa_s for o in seen], dtype=float) * 1e3
    tolerance = 0.15 if rate_hz < 1.5 else 0.35  # beyond its capacity a server's queue is all chance
    assert said.ttfa_p50_ms == pytest.approx(np.percentile(ttfa_ms, 50), rel=tolerance)
    assert said.ttfa_p95_ms == pytest.approx(np.percentile(ttfa_ms, 95), rel=tolerance)
    assert said.loss_rate == pytest.approx(refused / 3000, abs=0.05)


def test_predictions_follow_load_turns_and_machines() -> None:
    model = ServerModel(0.1, 0.09, 0.08, 0.04, 0.1, 6.0, 8, 16)
    loads = [predict(model, rate_hz) for rate_hz in (0.2, 0.6, 1.0, 1.4, 3.0)]
    for lighter, heavier in pairwise(loads):
        assert lighter.ttfa_p95_ms <= heavier.ttfa_p95_ms
        assert lighter.loss_rate <= heavier.loss_rate + 1e-12
        assert lighter.mean_running <= heavier.mean_running
    one, four = capacity_hz(model, *PROMISE), capacity_hz(model, *PROMISE, servers=4)
    assert four == pytest.approx(4 * one, rel=1e-3)
    assert capacity_hz(model.with_turns(2), *PROMISE) == pytest.approx(one / 2, rel=0.01)
    kept = predict(model, one)
    assert kept.ttfa_p95_ms <= PROMISE[0] + 1
    assert predict(model, one * 1.05).ttfa_p95_ms > PROMISE[0] - 1 or predict(model, one * 1.05).loss_rate > PROMISE[2]
    assert capacity_hz(model, 1.0, 0.0, 0.0) == pytest.approx(0.0, abs=1e-9)


def test_too_little_is_not_fitted() -> None:
    few = Simulated().run(0.5, LEAST_STREAMS - 1, seed=1)[0]
    with pytest.raises(LoadTestError, match=r"too few.*--point-seconds"):
        fit(few, 8, 16)
    same = [Observation(1, 1.0, 0.1, 1.0, 5.0)] * 50
    with pytest.raises(LoadTestError, match="no slope"):
        fit(same, 8, 16)


def load_point(server: Simulated, rate_hz: float, streams: int, folder: Path) -> LoadPoint:
    """A simulated load point in the form of a measured one."""
    seen, refused = server.run(rate_hz, streams, seed=round(rate_hz * 1000))
    tally, seconds = Tally(), streams / rate_hz
    rows = [
        StreamRecord(
            scenario="tts", seed=i, start_s=i / rate_hz, warm_up=False, phase="constant", outcome="done",
            running=o.running, mean_running=o.mean_running, first_pcm_ms=o.ttfa_s * 1e3, ttfa_ms=o.ttfa_s * 1e3,
            total_ms=(o.ttfa_s + o.work_s) * 1e3, audio_s=o.sound_s, real_time_factor=o.work_s / o.sound_s,
            stages_ms={"lm": 50 * o.sound_s, "decode_queue": 10 * o.work_s, "decode": 30 * o.sound_s},
        )
        for i, o in enumerate(seen) if o.ttfa_s is not None
    ]  # fmt: skip
    rows += [StreamRecord("tts", 0, 0.0, False, "constant", "rejected", "full", total_ms=5.0) for _ in range(refused)]
    for row in rows:
        tally.sent(row.start_s)
        tally.over(row, row.start_s + row.total_ms / 1e3, False)
    configured = Settings("localhost:1", run_time_s=seconds, slo=Slo(*PROMISE))
    about: dict[str, Any] = {"settings": {"run_time_s": seconds, "warm_up_s": 0.0}}
    figures = summary(Run(about, configured, tally, {"one": GeneratorLoad(0.1, 0.2)}, seconds, ""))
    return LoadPoint(rate_hz, folder, figures, tuple(rows))


def test_the_whole_answer_on_a_simulated_server(tmp_path: Path) -> None:
    """Searched, fitted, predicted, priced: within 15 % of the truth at a point nobody fitted."""
    server = Simulated()

    def probe(rate_hz: float) -> tuple[bool, LoadPoint]:
        point = load_point(server, rate_hz, 250, tmp_path)
        return point.kept, point

    result = search(probe, 0.25, 50.0, lambda: True)
    assert result.kept_hz is not None
    held_out = load_point(server, 0.8 * result.kept_hz, 500, tmp_path)
    found = answer(result, held_out, [load_point(server, 2 * result.kept_hz, 200, tmp_path)], Slo(*PROMISE),
                   Limits(server.slots, server.queue, 3.0))  # fmt: skip
    # A server that runs n streams makes n / g(n) seconds of sound per second: it cannot be loaded beyond that.
    most_hz = server.slots / (server.alone_s + server.more_s * (server.slots - 1)) / server.sound_s
    assert 0.4 * most_hz < found["capacity_per_s"] < most_hz
    assert found["predicted_capacity_per_s"] == pytest.approx(found["capacity_per_s"], rel=0.35)
    assert abs(found["held_out"]["ttfa_p95_ms"]["error"]) < 0.15
    assert found["bottleneck"] == "decode"
    assert found["cost_per_sound_hour"] == pytest.approx(3.0 / found["sound_s_per_s"])
    assert (
        found["overload"][0]["rejection_p95_ms"] == pytest.approx(5.0, rel=0.02)
        or not found["overload"][0]["loss_rate"]
    )
    said = text(found)
    for words in ("capacity of one server", "held out", "bottleneck: decode", "for 4 servers", "turns 2 times"):
        assert words in said
    assert page(found).count("<svg") == 3


def test_an_answer_without_a_model_says_why(tmp_path: Path) -> None:
    point = load_point(Simulated(), 0.2, 10, tmp_path)
    result = SearchResult(0.2, 0.25, (Point(0.2, True, point),), "narrow enough")
    found = answer(result, None, [], Slo(*PROMISE), Limits(8, 16))
    assert found["model"] is None
    assert "no model: 10 streams" in text(found)


def test_the_bottleneck_is_the_stage_that_grows() -> None:
    assert bottleneck({"lm": 50.0, "decode": 30.0}, {"lm": 55.0, "decode": 90.0}) == "decode"
    assert bottleneck({}, {}) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lowest-rate", "0"], "--lowest-rate: 0.0 is not valid"),
        (["--highest-rate", "1e9"], "at most 1000"),
        (["--point-seconds", "1"], "--point-seconds"),
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
