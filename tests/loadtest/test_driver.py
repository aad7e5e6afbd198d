"""One request and its record: what counts as audible, TTFA, gaps, stages and ends; threads and asyncio alike."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.driver import AUDIBLE_AMPLITUDE, Drive, Record, Response, is_audible
from loadtest_known_server import SCRIPTS, even
from loadtest_runs import Known, wait_for
from vita_client import AsyncClient, Client, Pcm, build_request


@given(st.lists(st.integers(-32_768, 32_767), max_size=40))
def test_audible_is_one_sample_above_60_db_below_full_scale(values: list[int]) -> None:
    assert is_audible(np.array(values, np.int16)) == any(abs(value) > 33 for value in values)


def test_the_limit_of_audible_itself_is_silence() -> None:
    assert 20 * np.log10(AUDIBLE_AMPLITUDE / 32_768) == pytest.approx(-60, abs=0.1)
    quiet = np.full(300, -AUDIBLE_AMPLITUDE, np.int16)
    assert not is_audible(quiet)
    quiet[200] = -AUDIBLE_AMPLITUDE - 1
    assert is_audible(quiet)
    quiet[200] = -32_768  # has no positive counterpart in 16 bits
    assert is_audible(quiet)


def test_figures_of_a_record() -> None:
    responses = (
        Response(10.2, text=True, tokens=2, stages_ms={"lm": 10.0}),
        Response(10.5, samples=2205, tokens=1, stages_ms={"lm": 12.0, "decode": 3.0}),  # silence
        Response(10.8, samples=22_050, audible=True, tokens=4, stages_ms={"lm": 15.0, "decode": 9.0}),
        Response(11.0),
    )
    record = Record(10.0, 11.5, responses)
    assert record.ttfa_ms == pytest.approx(800)
    assert record.first_sample_ms == pytest.approx(500)
    assert record.first_text_ms == pytest.approx(200)
    assert record.total_ms == pytest.approx(1500)
    assert record.gaps_ms == pytest.approx((300,))
    assert (record.tokens, record.samples) == (7, 24_255)
    assert record.real_time_factor == pytest.approx(0.8 / 1.1)
    assert record.first_stages_ms == record.stages_ms == {"lm": 15.0, "decode": 9.0}
    assert [len(record.playout(wait_s).underruns) for wait_s in (0.0, 0.25)] == [1, 0]


def test_a_record_of_nothing() -> None:
    record = Record(1.0, 1.5, code="server_full", error="server_full: full")
    assert (record.ttfa_ms, record.first_text_ms, record.real_time_factor, record.gaps_ms) == (None, None, None, ())
    assert (record.samples, record.first_stages_ms, record.playout().samples) == (0, {}, 0)


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_ends_are_told_by_their_code(kind: str, tmp_path: Path) -> None:
    def run(url: str, seed: int) -> Record:
        drive = Drive(build_request("Hello.", task="tts", seed=seed), timeout_s=30)
        if kind == "threads":
            with Client(url) as client:
                return drive.run(client)

        async def once() -> Record:
            async with AsyncClient(url) as client:
                return await drive.run_async(client)

        return asyncio.run(once())

    with Known("mixed", tmp_path) as server:
        full, failed, silent_first = (run(server.url, seed) for seed in (0, 1, 4))
    assert (full.code, full.responses, full.ttfa_ms) == ("server_full", (), None)
    assert failed.code not in ("done", "cancelled")
    assert failed.ttfa_ms is not None  # what came before the error is kept
    assert silent_first.code == "done"
    script = SCRIPTS["mixed"](4)
    assert silent_first.audio_s == pytest.approx(sum(sound_s for _, sound_s in script.chunks), abs=1e-3)
    assert silent_first.tokens == 2 * len(script.chunks)
    assert silent_first.ttfa_ms is not None
    assert silent_first.first_sample_ms is not None
    assert silent_first.ttfa_ms >= silent_first.first_sample_ms + 50  # the first response is silent throughout
    unreachable = run("localhost:1", 1)
    assert (unreachable.code not in ("done", "cancelled"), unreachable.responses) == (True, ())


def test_cancelling_before_and_within_a_stream(tmp_path: Path) -> None:
    with Known("long", tmp_path) as server, Client(server.url) as client:
        early = Drive(build_request("Hello.", task="tts", seed=1), timeout_s=30)
        early.cancel()
        assert (early.run(client).code, early.failure) == ("cancelled", None)
        late = Drive(
            build_request("Hello.", task="tts", seed=2), 30,
            on_event=lambda event: threading.Timer(0.1, late.cancel).start() if isinstance(event, Pcm) else None,
        )  # fmt: skip
        begun_s = time.monotonic()
        record = late.run(client)
    assert record.code == "cancelled"
    assert 0 < record.audio_s < sum(sound_s for _, sound_s in SCRIPTS["long"](2).chunks)
    assert time.monotonic() - begun_s < 5  # of 8
    assert len(late.responses) == len(record.responses) > 0


def test_a_stream_of_known_times(tmp_path: Path) -> None:
    with Known("even", tmp_path) as server, Client(server.url) as client:
        record = Drive(build_request("Hello.", task="tts", seed=7), timeout_s=30).run(client)
        wait_for(lambda: bool(server.sent()))
        (did,) = server.sent().values()
    assert len(record.responses) == len(even(7).chunks)
    assert record.ttfa_ms is not None
    assert (did["sent_s"][0] - did["received_s"]) * 1e3 <= record.ttfa_ms <= record.total_ms
