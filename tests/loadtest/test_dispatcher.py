"""Streams with known delays on a clock that is given: what is reported is what was injected, to the microsecond."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from gevent.event import Event

import loadtest.dispatcher
import loadtest.driver
from loadtest.dispatcher import Dispatcher
from loadtest.options import Settings
from loadtest.playout import Chunk, play
from loadtest.record import StreamRecord
from loadtest.tally import Tally
from loadtest.workload import UserRequest
from loadtest_known_server import LOUD, RATE_HZ, Script, mixed
from vita_audio.contract.errors import ServerFull
from vita_audio.contract.messages import Status
from vita_client import GenerationFailed, Pcm, ServerUnavailable, StatusUpdate, build_request, events
from vita_client.request import Request

STARTED_S, RUN_S, COUNT = 1_000.0, 60.0, 100
#: From the intended start to sending, in the time of the clock.
DELAY_S = 0.004


class Clock:
    now_s = STARTED_S

    def __call__(self) -> float:
        return self.now_s


class ScriptedClient:
    """Plays each seed's script: time passes where the script says, nowhere else."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @contextmanager
    def send(self, request: Request, timeout_s: float) -> Iterator[Iterator[events.Event]]:
        yield self._events(mixed(request.values["SEED"]))

    def _events(self, script: Script) -> Iterator[events.Event]:
        if script.end == "full":
            raise ServerUnavailable("server is full", code=ServerFull.default_code)
        left_silent = round(script.silence_s * RATE_HZ)
        for index, (gap_s, sound_s) in enumerate(script.chunks):
            self._clock.now_s += gap_s
            samples = np.full(round(sound_s * RATE_HZ), LOUD, np.int16)
            samples[:left_silent] = 0
            left_silent = max(0, left_silent - len(samples))
            yield Pcm(samples)
            yield StatusUpdate(Status("s", index, "running", timings_ms={"lm": 10.0 * (index + 1)}))
        if script.end == "failed":
            raise GenerationFailed("the engine broke")


def planned(seed: int) -> UserRequest:
    return UserRequest("tts", build_request("Hello.", task="tts", seed=seed), seed)


def run(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Tally, list[StreamRecord]]:
    clock, tally, ended = Clock(), Tally(), list[StreamRecord]()
    for module in (loadtest.driver, loadtest.dispatcher):
        monkeypatch.setattr(module, "now_s", clock)
    options = Settings("localhost:1", run_time_s=RUN_S, **settings)
    dispatcher = Dispatcher(
        ScriptedClient(clock),  # type: ignore[arg-type]
        options,
        STARTED_S,
        tally,
        lambda stream, error: ended.append(stream),
    )
    for seed in range(COUNT):
        intended_s = STARTED_S + seed * RUN_S / COUNT
        clock.now_s = intended_s + DELAY_S
        greenlet = dispatcher.launch(planned(seed), intended_s)
        assert greenlet is not None
        greenlet.get()
    return tally, ended


@pytest.mark.parametrize("prebuffer_s", [0.0, 0.15])
def test_every_time_is_the_one_that_was_injected(prebuffer_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    tally, streams = run(monkeypatch, prebuffer_s=prebuffer_s)
    assert [stream.seed for stream in streams] == list(range(COUNT))
    for stream in streams:
        script = mixed(stream.seed)
        assert stream.start_s == pytest.approx(stream.seed * RUN_S / COUNT)
        assert stream.start_delay_ms == pytest.approx(DELAY_S * 1e3)
        assert stream.outcome == {"full": "rejected"}.get(script.end, script.end)
        if script.end == "full":
            assert (stream.ttfa_ms, stream.audio_s, stream.underruns, stream.total_ms) == (None, 0, 0, 0)
            continue
        arrived = list(accumulate(gap_s for gap_s, _ in script.chunks))
        ends_s = accumulate(sound_s for _, sound_s in script.chunks)
        first = next(number for number, end_s in enumerate(ends_s) if end_s > script.silence_s)
        assert stream.ttfa_ms == pytest.approx(arrived[first] * 1e3)
        assert stream.first_pcm_ms == pytest.approx(arrived[0] * 1e3)
        assert stream.total_ms == pytest.approx(arrived[-1] * 1e3)
        assert stream.gaps_ms == pytest.approx([gap_s * 1e3 for gap_s, _ in script.chunks[1:]])
        assert stream.audio_s == pytest.approx(sum(sound_s for _, sound_s in script.chunks), abs=1e-4)
        assert stream.first_stages_ms["lm"] == pytest.approx(10 * (first + 1))
        breaks = [seconds - prebuffer_s for seconds in script.underruns_s if seconds > prebuffer_s]
        assert stream.underruns == len(breaks)
        assert stream.underrun_s == pytest.approx(sum(breaks), abs=1e-4)
    kinds = [mixed(seed).end for seed in range(COUNT)]
    total = tally.total()
    assert [total.counts[kind] for kind in ("done", "failed", "rejected")] == [
        kinds.count(kind) for kind in ("done", "failed", "full")
    ]
    assert sum(window.sent for window in tally.windows.values()) == COUNT


def test_percentiles_are_those_of_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    tally, streams = run(monkeypatch)
    times_ms = [stream.ttfa_ms for stream in streams if stream.ttfa_ms is not None]
    ttfa = tally.total().histogram("ttfa")
    for percent in (50, 90, 95):
        exact = float(np.percentile(times_ms, percent, method="inverted_cdf"))
        assert ttfa.percentile(percent) == pytest.approx(exact, rel=0.02)


def test_a_stream_beyond_the_limit_is_counted_as_failed_and_not_sent() -> None:
    held = Event()

    class Holding:
        @contextmanager
        def send(self, request: Request, timeout_s: float) -> Iterator[Iterator[Any]]:
            held.wait()
            yield iter(())

    ended: list[StreamRecord] = []
    settings = Settings("localhost:1", max_streams=1)
    dispatcher = Dispatcher(Holding(), settings, STARTED_S, Tally(), lambda stream, _: ended.append(stream))  # type: ignore[arg-type]
    first, second = (dispatcher.launch(planned(seed), STARTED_S) for seed in (1, 2))
    assert first is not None
    assert second is not None
    second.get(timeout=60)
    assert [(stream.seed, stream.outcome) for stream in ended] == [(2, "failed")]
    assert ended[0].error.startswith("generator_full:")
    held.set()
    first.get(timeout=60)
    assert [stream.seed for stream in ended] == [2, 1]


def test_after_the_end_nothing_is_sent() -> None:
    dispatcher = Dispatcher(None, Settings("localhost:1"), 0.0, Tally(), lambda *_: None)  # type: ignore[arg-type]
    dispatcher.drain(0.0)
    assert dispatcher.launch(planned(1), 0.0) is None


def test_the_injected_breaks_are_what_a_player_makes_of_the_chunks() -> None:
    for seed in range(10):
        script = mixed(seed)
        arrived = accumulate(gap_s for gap_s, _ in script.chunks)
        chunks = [Chunk(at_s, round(s * RATE_HZ)) for at_s, (_, s) in zip(arrived, script.chunks, strict=True)]
        assert play(chunks, RATE_HZ).underrun_s == pytest.approx(sum(script.underruns_s), abs=1e-4)
