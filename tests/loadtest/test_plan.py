"""What a run is made of: arrivals, shapes, workload, options, and their errors. Nothing is sent."""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.__main__ import main
from loadtest.arrivals import PoissonSource
from loadtest.errors import LoadTestError
from loadtest.options import MAX_USERS, Settings, add_arguments, check_target, settings_from
from loadtest.shapes import SHAPES, WARM_UP, load_plan
from loadtest.tally import SLOW_READER
from loadtest.workload import DEFAULT_MIX, SCENARIOS, UserProfile, UserRequest, Workload, load_voices, parse_mix
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ

VOICE = [np.full(8_000, 0.1, np.float32)]


@given(st.integers(0, 1000), st.lists(st.floats(0, 20), max_size=10))
@settings(max_examples=40, deadline=None)
def test_being_late_moves_no_intended_start(seed: int, polls: list[float]) -> None:
    """However seldom the source is asked, the calls are meant for the same moments."""
    punctual = PoissonSource(3.0, 100.0, random.Random(seed))
    wanted = [at_s for tick in range(2001) for at_s in punctual.due(100 + tick / 100)]
    late = PoissonSource(3.0, 100.0, random.Random(seed))
    got = [at_s for poll in [*sorted(polls), 20.0] for at_s in late.due(100 + poll)]
    assert got == pytest.approx(wanted)


def test_sources_add_up_to_one_poisson_process() -> None:
    arrivals = sorted(
        at_s for number in range(20) for at_s in PoissonSource(0.5, 0.0, random.Random(f"1/{number}")).due(200.0)
    )
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert len(arrivals) == pytest.approx(2000, rel=0.08)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)  # exponential


@given(st.sampled_from(SHAPES), st.floats(1, 5000), st.floats(0, 0.9))
@settings(max_examples=50, deadline=None)
def test_phases_fill_the_run_without_holes(shape: str, run_time_s: float, warm_up: float) -> None:
    plan = load_plan(shape, run_time_s, warm_up * run_time_s)
    assert plan.phases[0].start_s == 0
    assert plan.end_s == pytest.approx(run_time_s)
    assert all(a.end_s == b.start_s < b.end_s for a, b in pairwise(plan.phases))
    assert max(phase.share for phase in plan.phases) == 1.0
    assert (plan.phases[0].name == WARM_UP) == (warm_up * run_time_s > 0)
    middle = plan.phases[-1]
    assert plan.at((middle.start_s + middle.end_s) / 2) == middle
    assert plan.at(plan.end_s + 1) is None


def drawn(workload: Workload) -> UserRequest:
    one = workload.draw()
    assert isinstance(one, UserRequest)  # no mix of these tests has conversations
    return one


def test_requests_are_those_of_the_profile() -> None:
    profile = UserProfile(mix={"chat_voice": 3, "tts": 1}, barge_in=0.25, slow=0.2)
    requests = [drawn(Workload(profile, VOICE, random.Random(number))) for number in range(1500)]
    kinds = [one.scenario for one in requests]
    assert set(kinds) == {"chat_voice", "tts", SLOW_READER}
    assert kinds.count(SLOW_READER) == pytest.approx(300, rel=0.2)
    assert kinds.count("chat_voice") == pytest.approx(900, rel=0.1)
    quick = [one for one in requests if one.scenario != SLOW_READER]
    cut = [one.barge_in_s for one in quick if one.barge_in_s is not None]
    assert len(cut) == pytest.approx(0.25 * len(quick), rel=0.2)
    assert 0.3 <= min(cut) < max(cut) <= 3.0
    values = [one.request.values for one in requests]
    spoken = [len(each["AUDIO"]) / INPUT_SAMPLE_RATE_HZ for each in values if "AUDIO" in each]
    assert statistics.median(spoken) == pytest.approx(2.5, rel=0.15)
    assert (min(spoken), max(spoken)) == (pytest.approx(0.5, abs=0.3), pytest.approx(15, abs=5))
    answers = [each["MAX_TOKENS"] for each in values]
    assert statistics.median(answers) == pytest.approx(150, rel=0.15)
    assert 20 <= min(answers) <= max(answers) <= 400
    assert len({one.seed for one in requests}) == len({each["SEED"] for each in values}) == len(requests)


def test_the_same_seed_gives_the_same_requests() -> None:
    def some(seed: int) -> list[Any]:
        source = Workload(UserProfile(), VOICE, random.Random(seed))
        return [
            (one.scenario, one.request.values.get("TEXT"), one.request.values["MAX_TOKENS"], one.seed)
            for one in (drawn(source) for _ in range(30))
        ]

    assert some(5) == some(5) != some(6)
    assert {scenario for scenario, *_ in some(5)} == set(DEFAULT_MIX) < set(SCENARIOS)


def test_mix() -> None:
    assert parse_mix("chat_voice=2, asr=0,tts") == {"chat_voice": 2.0, "asr": 0.0, "tts": 1.0}
    for text, words in (
        ("sing=1", "scenarios are"),
        ("tts=x", "scenario=weight"),
        ("tts=-1", "0 or more"),
        ("tts=0", "all its"),
    ):
        with pytest.raises(LoadTestError, match=words):
            parse_mix(text)


def test_voices(tmp_path: Path) -> None:
    assert len(load_voices(Settings("localhost:1").speech)) == 1
    with pytest.raises(LoadTestError, match="no WAV or FLAC"):
        load_voices(tmp_path)


@pytest.mark.parametrize("url", ["localhost:8001", "127.0.0.1:1", "127.8.0.3:1", "[::1]:8001"])
def test_loopback_needs_no_flag(url: str) -> None:
    check_target(url, allow_remote=False)


@pytest.mark.parametrize(
    "url", ["10.0.0.1:8001", "example.com:8001", "localhost.example.com:1", "0.0.0.0:1", "[2001::1]:1"]
)
def test_elsewhere_takes_a_flag(url: str) -> None:
    with pytest.raises(LoadTestError, match="--allow-remote"):
        check_target(url, allow_remote=False)
    check_target(url, allow_remote=True)


def test_locusts_options_become_settings() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(
        ["--mode", "boost", "--prebuffer-ms", "200", "--slo-ttfa-p95-ms", "300", "--mix", "tts", "--fail-on-slo"]
    )
    made = settings_from(options, "http://localhost:8001/", 7)
    assert (made.url, made.users, made.profile.mode, made.prebuffer_s) == ("localhost:8001", 7, "boost", 0.2)
    assert (made.slo.ttfa_p95_ms, made.profile.mix) == (300, {"tts": 1.0})
    assert made.fail_on_slo
    assert parse_mix(parser.get_default("mix")) == DEFAULT_MIX


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--rate", "0"], 2, "--rate: 0.0 is not valid: it is above 0"),
        (["--rate", "1e7"], 2, "at most 1000 streams per second"),
        (["--rate", "nan"], 2, "--rate: nan"),
        (["--loop", "closed", "--users", "0"], 2, "--users: 0 is not valid"),
        (["--loop", "closed", "--users", str(MAX_USERS + 1)], 2, f"it is from 1 to {MAX_USERS}"),
        (["--loop", "closed", "--rate", "1"], 2, "it belongs to --loop open"),
        (["--users", "3"], 2, "it belongs to --loop closed"),
        (["--run-time", "0"], 2, "--run-time"),
        (["--run-time", "1e9"], 2, "--run-time"),
        (["--warm-up", "60"], 2, "--warm-up: 60.0 is not valid"),
        (["--barge-in", "2"], 2, "--barge-in"),
        (["--turns", "1"], 2, "--turns: 1.0 is not valid"),
        (["--mode", "warp"], 2, "warp"),
        (["--url", "localhost:"], 2, "it has the form host:port"),
        (["--url", "localhost"], 2, "it has the form host:port"),
        (["--url", "192.168.1.1:8001"], 2, "it is not on loopback"),
        (["--url", "127.0.0.1"], 2, "--url: '127.0.0.1' is not valid: it has the form host:port"),
        (["--url", "https://127.0.0.1:59"], 2, "--url: 'https://127.0.0.1:59' is not valid: it has the form host:port"),
        (["--url", ""], 2, "--url: '' is not valid"),
        (["--speech", "/nonexistent.wav"], 2, "--speech: AUDIO: '/nonexistent.wav' is not valid"),
        (["--out", __file__], 2, f"--out: {__file__!r} is not valid: no report can be written there (File exists)"),
        (["--out", "/proc/report"], 2, "--out: '/proc/report' is not valid: no report can be written there"),
        (["--out", "/proc/self"], 2, "--out: '/proc/self' is not valid: no report can be written there"),
        (["--slo-ttfa-p95-ms", "inf"], 2, "--slo-ttfa-p95-ms: inf is not valid"),
        (["--slo-underrun-rate", "nan"], 2, "--slo-underrun-rate: nan is not valid"),
        (["--slo-loss-rate", "2"], 2, "--slo-loss-rate: 2.0 is not valid"),
        (["--drain", "nan"], 2, "--drain: nan is not valid"),
        (["--drain", "1e9"], 2, "--drain: 1000000000.0 is not valid: it is from 0 to 3600 seconds"),
        (["-t", "10m"], 2, "-t: '10m' is not valid: it is an option of locust itself; use --run-time"),
        (["-t10m"], 2, "use --run-time"),
        (["--stop-timeout", "10m"], 2, "use --drain"),
        (["--host", "localhost:1"], 2, "use --url"),
        (["-u", "5"], 2, "use --rate (open loop) or --users (closed loop)"),
        (["--url", "localhost:1"], 3, "start one with: make serve"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_sent(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert main(["--out", str(tmp_path), *arguments]) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.strip().splitlines()) == 1
