"""Decodes that go on after their start, as on a GPU: what the service does meanwhile, and with late errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from decoding_bench import AUDIO, Bench, audio, make
from decoding_doubles import EVERY_20, FlowDouble, VocoderDouble
from vita_audio.contract.errors import EngineError
from vita_audio.contract.rates import mel_frames, output_samples
from vita_audio.decoding import service
from vita_audio.decoding.decoder import Decoding, Pcm, StreamingDecoder, StreamState
from waiting import until


@dataclass
class Slow:
    """A decode that was started and is through when the test says so."""

    decoding: Decoding
    streams: int
    through: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    results_are: list[EngineError | None] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.through.is_set()

    def results(self) -> list[Pcm | EngineError]:
        assert self.through.wait(10)
        if self.error is not None:
            raise self.error
        made = self.decoding.results()
        return [error or pcm for error, pcm in zip(self.results_are or [None] * len(made), made, strict=True)]


@pytest.fixture
def slow() -> Iterator[tuple[Bench, list[Slow]]]:
    bench, started = make(), []  # type: Bench, list[Slow]
    decoder = bench.service._decoder
    start = decoder.start

    def begin(states: Sequence[StreamState]) -> Slow:
        started.append(Slow(start(states), len(states)))
        return started[-1]

    decoder.start = begin  # type: ignore[assignment, method-assign]
    yield bench, started
    for one in started:
        one.through.set()
    closing = threading.Thread(target=bench.service.close)
    closing.start()
    while closing.is_alive():
        for one in list(started):
            one.through.set()
        closing.join(0.01)


def test_the_next_batch_starts_and_messages_are_taken_in_while_one_is_under_way(
    slow: tuple[Bench, list[Slow]],
) -> None:
    bench, started = slow
    bench.send("a", audio(8))
    until(lambda: len(started) == 1)
    bench.send("text", [104, 105])  # answered at once: it has nothing to decode
    until(lambda: bench.order() == ["text"])
    for name in "bc":
        bench.send(name, audio(8))
    until(lambda: len(started) == 2)
    for name in "de":
        bench.send(name, audio(8))
    bench.send("text", [104])
    bench.wait(2)
    assert len(started) == 2, "a third batch would only lie before the GPU"
    assert bench.service.stats().live_streams == 6
    started[0].through.set()
    bench.wait(3)
    until(lambda: len(started) == 3)
    started[1].through.set()
    started[2].through.set()
    bench.wait(7)
    assert bench.order()[2] == "a"
    for name in "abcde":
        assert len(bench.pcm(name)) == 256 * (mel_frames(8) - 30)


def test_a_stream_has_one_decode_under_way_and_answers_stay_in_order(slow: tuple[Bench, list[Slow]]) -> None:
    bench, started = slow
    bench.send("a", audio(8))
    bench.send("a", audio(32, 8))
    bench.send("a", [], state="done")
    expected = StreamingDecoder(FlowDouble(), VocoderDouble(), EVERY_20)
    state = expected.init(7)
    pcm = np.concatenate([expected.push(state, [t - AUDIO for t in audio(40)]), expected.finish(state)])
    until(lambda: len(started) == 1)
    for count in range(1, 5):
        until(lambda count=count: len(started) == count)  # type: ignore[misc]
        assert bench.complete < 3
        started[-1].through.set()
    bench.wait(3)
    assert len(started) == 4  # at 8, 20 and 40 tokens, and the frames held back
    assert [chunk.status.index for chunk in bench.of("a")] == list(range(len(bench.of("a"))))
    np.testing.assert_array_equal(bench.pcm("a"), pcm)
    timings = [chunk.status.timings_ms["decode"] for chunk in bench.of("a")]
    assert timings == sorted(timings)


def test_an_error_that_comes_late_ends_the_stream_at_fault(slow: tuple[Bench, list[Slow]]) -> None:
    bench, started = slow
    bench.send("busy", audio(8))
    until(lambda: len(started) == 1)
    bench.flow.entered.clear()
    bench.flow.open.clear()
    bench.send("more", audio(20))
    assert bench.flow.entered.wait(10)
    for name in ("good", "bad"):
        bench.send(name, audio(8))
    bench.flow.open.set()
    started[0].through.set()
    until(lambda: len(started) == 3)
    (pair,) = [one for one in started if one.streams == 2]
    pair.results_are = [EngineError("not finite") if i else None for i in range(2)]
    for one in started:
        one.through.set()
    until(lambda: len(bench.of("bad")) == 1 and len(bench.of("good")) == 1)
    assert bench.of("bad")[0].status.state == "failed"
    assert "not finite" in bench.of("bad")[0].status.reason
    assert len(bench.pcm("good")) > 0
    until(lambda: bench.stopped == ["bad"])


def test_a_device_that_breaks_ends_all_streams_of_the_batch(slow: tuple[Bench, list[Slow]]) -> None:
    bench, started = slow
    bench.send("a", audio(8))
    until(lambda: len(started) == 1)
    started[0].error = RuntimeError("CUDA error: an illegal memory access\nwas encountered")
    started[0].through.set()
    bench.wait(1)
    assert bench.of("a")[0].status.reason == "audio decoding failed: RuntimeError: CUDA error: an illegal memory access"
    until(lambda: bench.stopped == ["a"])


def test_a_stream_that_is_cancelled_under_way_is_answered_once(slow: tuple[Bench, list[Slow]]) -> None:
    bench, started = slow
    bench.send("a", audio(8))
    until(lambda: len(started) == 1)
    bench.service.cancel("a")
    bench.wait(1)  # at once, whatever the GPU does
    started[0].through.set()
    bench.send("b", audio(8))
    until(lambda: len(started) == 2)
    started[1].through.set()
    bench.wait(2)
    assert [chunk.status.state for chunk in bench.of("a")] == ["cancelled"]
    assert len(bench.pcm("b")) > 0


def test_a_batch_that_takes_too_long_is_waited_for_in_a_call(
    slow: tuple[Bench, list[Slow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pulse of a thread that only looked whether it is through would go on for ever."""
    monkeypatch.setattr(service, "_PATIENCE_S", 0.05)
    bench, started = slow
    waits = threading.Event()
    results = Slow.results
    monkeypatch.setattr(Slow, "results", lambda self: (waits.set(), results(self))[1])
    bench.send("a", audio(8))
    assert waits.wait(10)
    assert not started[0].through.is_set()
    started[0].through.set()
    bench.wait(1)


def test_a_close_answers_what_is_under_way(slow: tuple[Bench, list[Slow]]) -> None:
    bench, started = slow
    bench.send("a", audio(8), state="done")
    until(lambda: len(started) == 1)
    closing = threading.Thread(target=bench.service.close)
    closing.start()
    started[0].through.set()
    closing.join(10)
    assert not closing.is_alive()
    assert len(bench.pcm("a")) < output_samples(8)
    assert bench.of("a")[-1].complete
