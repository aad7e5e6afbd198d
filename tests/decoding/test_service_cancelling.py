"""Cancelled streams in the decoding service: empty answers, one cancel to the language model, nothing left behind."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np

from decoding_bench import Bench, audio, make
from vita_audio.contract.rates import mel_frames, output_samples
from waiting import until


def test_a_cancelled_request_is_answered_empty_and_stops_the_language_model(bench: Bench) -> None:
    bench.send("a", audio(20))
    bench.send("b", audio(20))
    bench.wait(2)
    bench.send("a", [104, *audio(20, 20)], cancelled=lambda: True)
    bench.send("b", audio(20, 20))
    bench.wait(4)
    last = bench.of("a")[-1]
    assert (last.status.state, last.status.index, last.text, len(last.tokens), len(last.pcm)) == (
        "cancelled",
        2,
        "",
        0,
        0,
    )
    until(lambda: bench.stopped == ["a"])
    assert bench.released == []
    assert bench.notify_threads == {"cancel-notifier"}
    # What the language model still had under way is answered too, empty; its end does not ask for a stop again.
    bench.send("a", audio(8))
    bench.send("a", [], state="cancelled")
    bench.wait(6)
    assert [chunk.status.state for chunk in bench.of("a")[3:]] == ["cancelled"] * 2
    assert all(len(chunk.pcm) == 0 for chunk in bench.of("a")[2:])
    stats = bench.service.stats()
    assert (stats.live_streams, stats.waiting_requests, stats.ended) == (1, 0, {"cancelled": 1})
    assert len(bench.pcm("b")) == 256 * (mel_frames(40) - 30)
    assert bench.stopped == ["a"]


def test_a_client_that_goes_during_the_decode_is_noticed_before_the_answer(bench: Bench) -> None:
    gone = threading.Event()
    bench.flow.open.clear()
    bench.send("a", audio(8), cancelled=gone.is_set)
    assert bench.flow.entered.wait(10)
    gone.set()
    bench.flow.open.set()
    bench.wait(1)
    assert bench.answers[0].status.state == "cancelled"
    assert len(bench.answers[0].pcm) == 0
    until(lambda: bench.stopped == ["a"])


def test_requests_waiting_behind_a_cancelled_one_are_answered(bench: Bench) -> None:
    bench.flow.open.clear()
    bench.send("busy", audio(8))
    assert bench.flow.entered.wait(10)
    bench.send("a", audio(20), cancelled=lambda: True)
    bench.send("a", audio(20), cancelled=lambda: True)
    bench.send("a", [], state="done", cancelled=lambda: True)
    bench.flow.open.set()
    bench.wait(4)
    assert [chunk.status.state for chunk in bench.of("a")] == ["cancelled"] * 3
    until(lambda: bench.stopped == ["a"])  # the language model has ended, but keeps its request open
    assert bench.released == []


def test_the_newest_message_shows_that_the_client_is_gone_while_older_ones_wait(bench: Bench) -> None:
    """Triton never tells it of a message that was on its way before."""
    bench.flow.one_at_a_time.set()
    bench.flow.open.clear()
    bench.send("a", audio(20))
    assert bench.flow.entered.wait(10)
    bench.send("a", audio(100, 20))
    bench.send("a", audio(8, 120), cancelled=lambda: True)
    bench.flow.open.set()  # for one decode
    bench.wait(3)
    assert bench.of("a")[-1].status.state == "cancelled"
    until(lambda: bench.stopped == ["a"])


def test_a_stream_whose_client_is_gone_is_not_decoded_to_its_end(bench: Bench) -> None:
    """Its tokens are complete: no message comes any more that would show it, only a probe does."""
    bench.send("a", audio(20))
    bench.wait(1)
    bench.flow.entered.clear()
    bench.flow.open.clear()
    bench.send("a", audio(400), state="done")
    assert bench.flow.entered.wait(10)
    bench.service.cancel("a")
    until(lambda: bench.stopped == ["a"])  # while the decoder is still at work
    bench.flow.open.set()
    bench.wait(2)
    last = bench.answers[-1].status
    assert (last.state, last.code, bench.released) == ("cancelled", "cancelled", [])
    assert len(bench.pcm("a")) < output_samples(100)
    assert bench.service.stats().ended == {"cancelled": 1}
    bench.service.close()  # makes the calls that were asked for
    assert bench.stopped == ["a"]


def test_a_stream_is_cancelled_before_its_first_message(bench: Bench) -> None:
    bench.service.cancel("queued")
    bench.service.cancel("queued")
    until(lambda: bench.stopped == ["queued"] * 2)
    bench.send("queued", audio(8), cancelled=lambda: True)
    bench.wait(1)
    assert bench.answers[0].status.state == "cancelled"
    assert bench.service.stats().live_streams == 0


def test_a_slow_stop_does_not_hold_up_decoding() -> None:
    hold = threading.Event()
    bench = make(stop=lambda stream: assert_true(hold.wait(10)))
    bench.send("a", audio(8), cancelled=lambda: True)
    bench.send("b", audio(60))
    bench.wait(2)
    assert len(bench.pcm("b")) > 0
    hold.set()
    bench.service.close()


def assert_true(value: bool) -> None:
    assert value


def test_a_hundred_streams_cancelled_at_random_leave_nothing_behind() -> None:
    bench = make()
    rng = np.random.default_rng(0)
    sent = 0
    for number in range(100):
        for index in range(int(rng.integers(1, 6))):
            gone = index and rng.random() < 0.3
            bench.send(f"s{number}", audio(8, 8 * index), cancelled=partial(bool, gone))
            sent += 1
        bench.send(f"s{number}", [], state="done" if rng.random() < 0.7 else "cancelled")
        sent += 1
    until(lambda: len(bench.answers) >= sent, 30)
    stats = bench.service.stats()
    assert len(bench.answers) == sent
    assert (stats.live_streams, stats.waiting_requests, sum(stats.ended.values())) == (0, 0, 100)
    assert bench.service.stats().batches.keys() - {1}, "streams in step must have shared batches"
    bench.service.close()
