"""The decoding service: one answer per message on every path, order, priority, isolation, nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_doubles import EVERY_20, FlowDouble, VocoderDouble
from vita_audio.contract.messages import Cancel, Delta, Released, State, Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ, mel_frames, output_samples
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.served_stream import DecodedChunk
from vita_audio.decoding.service import DecodingService

AUDIO = 1000  # id of audio code 0; ids below 256 are bytes of text, 300 and 301 the audio tags
BAD_CODE = 999  # the stand-in flow knows 64 codes


class VocabularyDouble:
    def is_text(self, token: int) -> bool:
        return token < 256

    def audio_code(self, token: int) -> int | None:
        return token - AUDIO if token >= AUDIO else None


class DetokenizerDouble:
    """One byte a token; the last one waits for the next, to see that the end is flushed."""

    def __init__(self) -> None:
        self._kept = ""

    def push(self, ids: Iterable[int]) -> str:
        text = self._kept + "".join(map(chr, ids))
        self._kept = text[-1:]
        return text[:-1]

    def flush(self) -> str:
        return self._kept


class GatedFlow(FlowDouble):
    """Waits before every decode until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.one_at_a_time = threading.Event()  # the gate shuts behind whoever goes through

    def condition(self, tokens: np.ndarray, frame_token: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.open.wait(10)
        if self.one_at_a_time.is_set():
            self.open.clear()
        return super().condition(tokens, frame_token)


@dataclass
class Bench:
    """A service with everything it was told and everything it answered."""

    flow: GatedFlow
    vocoder: VocoderDouble
    service: DecodingService
    answers: list[DecodedChunk] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    stopped: list[str] = field(default_factory=list)
    released: list[tuple[str, int]] = field(default_factory=list)  # and how many answers had been sent by then
    notify_threads: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=dict)

    def send(
        self,
        stream: str,
        tokens: list[int],
        state: State = "running",
        cancelled: Callable[[], bool] = lambda: False,
        index: int | None = None,
        seed: int = 7,
    ) -> None:
        index = self.sent.get(stream, 0) if index is None else index
        self.sent[stream] = index + 1
        status = Status(stream, index, state, seed=seed, timings_ms={"lm": 1.5})
        self.service.submit(Delta(status, tokens), self._take, cancelled)

    def _take(self, chunk: DecodedChunk) -> None:
        self.threads.add(threading.current_thread().name)
        self.answers.append(chunk)

    def of(self, stream: str) -> list[DecodedChunk]:
        return [chunk for chunk in self.answers if chunk.status.stream == stream]

    def order(self) -> list[str]:
        """Streams of the messages, as they were answered to the end."""
        return [chunk.status.stream for chunk in self.answers if chunk.complete]

    def pcm(self, stream: str) -> np.ndarray:
        return np.concatenate([chunk.pcm for chunk in self.of(stream)])

    def wait(self, count: int) -> None:
        """For this many messages to be answered to the end."""
        until(lambda: self.complete >= count)
        assert self.complete == count

    @property
    def complete(self) -> int:
        return sum(chunk.complete for chunk in self.answers)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.001)


def make(idle_timeout_s: float = 60.0, max_batch: int = 8, stop: Callable[[str], None] | None = None) -> Bench:
    flow, vocoder = GatedFlow(), VocoderDouble()
    made: Bench

    def notify(message: Cancel | Released) -> None:
        made.notify_threads.add(threading.current_thread().name)
        if isinstance(message, Released):
            made.released.append((message.stream, len(made.of(message.stream))))
            return
        made.stopped.append(message.stream)
        if stop is not None:
            stop(message.stream)

    service = DecodingService(
        StreamingDecoder(flow, vocoder, EVERY_20),
        VocabularyDouble(),
        DetokenizerDouble,
        notify,
        max_batch=max_batch,
        idle_timeout_s=idle_timeout_s,
    )
    made = Bench(flow, vocoder, service)
    return made


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = make()
    yield bench
    bench.flow.open.set()
    bench.service.close()


def audio(count: int, start: int = 0) -> list[int]:
    return [AUDIO + (start + i) % 64 for i in range(count)]


def interleaved(groups: int) -> list[int]:
    """Boost-like ids: text, begin tag, 8 codes, end tag."""
    ids: list[int] = []
    for group in range(groups):
        ids += [ord("a") + group % 26, 300, *audio(8, 8 * group), 301]
    return ids


def test_tokens_are_routed_and_the_stream_is_spoken_to_its_end(bench: Bench) -> None:
    ids = interleaved(9)
    for start in range(0, len(ids), 10):
        bench.send("a", ids[start : start + 10])
    bench.send("a", [], state="done")
    bench.wait(11)
    chunks = bench.of("a")
    assert [chunk.status.index for chunk in chunks] == list(range(11))
    assert [chunk.status.state for chunk in chunks] == ["running"] * 10 + ["done"]
    assert "".join(chunk.text for chunk in chunks) == "abcdefghi"
    assert [token for chunk in chunks for token in chunk.tokens] == ids
    assert chunks[0].tokens.dtype == np.int32
    expected = StreamingDecoder(FlowDouble(), VocoderDouble(), EVERY_20)
    state = expected.init(7)
    pcm = np.concatenate([expected.push(state, [t - AUDIO for t in ids if t >= AUDIO]), expected.finish(state)])
    np.testing.assert_array_equal(bench.pcm("a"), pcm)
    assert len(pcm) == output_samples(72)
    assert bench.service.stats().live_streams == 0
    assert bench.released == [("a", 10)]  # before the last answer
    assert bench.stopped == []
    assert bench.threads == {"decoding", "cancel-notifier"}


def test_timings_grow_over_the_stream_and_keep_the_earlier_stages(bench: Bench) -> None:
    for _ in range(4):
        bench.send("a", audio(20))
    bench.send("a", [], state="done")
    bench.wait(5)
    timings = [chunk.status.timings_ms for chunk in bench.of("a")]
    assert all(timing["lm"] == 1.5 for timing in timings)
    for name in ("decode", "decode_queue"):
        values = [timing[name] for timing in timings]
        assert values == sorted(values)
        assert values[-1] > 0


def test_a_text_stream_gives_text_only(bench: Bench) -> None:
    bench.send("a", [104, 105])
    bench.send("a", [33], state="done")
    bench.wait(2)
    assert [chunk.text for chunk in bench.of("a")] == ["h", "i!"]
    assert all(len(chunk.pcm) == 0 for chunk in bench.answers)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=30))
@settings(max_examples=15, deadline=None)
def test_any_interleaving_of_streams_answers_each_message_once_in_order(messages: list[tuple[int, int]]) -> None:
    bench = make(max_batch=3)
    totals = dict.fromkeys("0123", 0)
    for which, count in messages:
        bench.send(str(which), audio(count, totals[str(which)]), seed=which)
        totals[str(which)] += count
    for name in totals:
        bench.send(name, [], state="done", seed=int(name))
    bench.wait(len(messages) + 4)
    bench.service.close()
    for name, count in totals.items():
        assert [chunk.status.index for chunk in bench.of(name)] == list(range(len(bench.of(name))))
        assert len(bench.pcm(name)) == output_samples(count)
        alone = StreamingDecoder(FlowDouble(), VocoderDouble(), EVERY_20)
        state = alone.init(int(name))
        expected = np.concatenate([alone.push(state, [t - AUDIO for t in audio(count)]), alone.finish(state)])
        assert np.abs(bench.pcm(name).astype(int) - expected).max(initial=0) <= 1  # float rounding in batches
    assert bench.service.stats().live_streams == 0


def test_chunks_of_different_streams_share_a_batch(bench: Bench) -> None:
    bench.flow.open.clear()
    bench.send("first", audio(8))
    assert bench.flow.entered.wait(10)
    for name in "abcdef":
        bench.send(name, audio(8))
    bench.flow.open.set()
    bench.wait(7)
    assert bench.service.stats().batches == {1: 1, 6: 1}
    assert bench.flow.batches == [(1, mel_frames(8)), (6, mel_frames(8))]


def test_first_chunks_overtake_later_chunks_and_the_poorest_stream_goes_first(bench: Bench) -> None:
    bench.send("rich", audio(100))
    bench.send("poor", audio(20))
    bench.wait(2)
    assert len(bench.pcm("rich")) > len(bench.pcm("poor")) > OUTPUT_SAMPLE_RATE_HZ // 2
    bench.flow.entered.clear()
    bench.flow.open.clear()
    bench.send("busy", audio(8))
    assert bench.flow.entered.wait(10)
    bench.send("rich", audio(40, 100))
    bench.send("poor", audio(20, 20))
    bench.send("new", audio(8))
    bench.flow.open.set()
    bench.wait(6)
    assert bench.order()[2:] == ["busy", "new", "poor", "rich"]


def test_a_listener_about_to_run_out_goes_before_a_newcomer(bench: Bench) -> None:
    bench.send("poor", audio(8))  # 0.29 s of sound
    bench.wait(1)
    bench.flow.entered.clear()
    bench.flow.open.clear()
    bench.send("busy", audio(8))
    assert bench.flow.entered.wait(10)
    bench.send("poor", audio(12, 8))
    bench.send("new", audio(8))
    bench.flow.open.set()
    bench.wait(4)
    assert bench.order()[1:] == ["busy", "poor", "new"]


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


def test_a_message_with_several_decodes_is_answered_decode_by_decode(bench: Bench) -> None:
    """A short answer often comes in two messages; its second chunk must not wait for its end."""
    bench.send("a", [104, 105, *audio(8)])
    bench.wait(1)
    bench.flow.open.clear()
    bench.flow.entered.clear()
    bench.send("a", [33, *audio(26, 8)], state="done")
    assert bench.flow.entered.wait(10)
    assert len(bench.answers) == 1
    bench.flow.entered.clear()
    bench.flow.one_at_a_time.set()
    bench.flow.open.set()
    until(lambda: len(bench.answers) == 2)
    early = bench.answers[1]
    assert (early.complete, early.status.state, early.status.reason, early.status.index) == (False, "running", "", 1)
    assert early.text == "i!"
    assert len(early.tokens) == 27
    assert len(early.pcm) > OUTPUT_SAMPLE_RATE_HZ // 2
    bench.flow.one_at_a_time.clear()
    bench.flow.open.set()
    bench.wait(2)
    last = bench.answers[2]
    assert (last.complete, last.status.state, last.status.index, last.text, len(last.tokens)) == (
        True,
        "done",
        2,
        "",
        0,
    )
    assert len(bench.pcm("a")) == output_samples(34)
    timings = [chunk.status.timings_ms["decode"] for chunk in bench.answers]
    assert timings == sorted(set(timings))


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
    bench.send("a", audio(20))
    bench.send("a", [], state="done")
    bench.flow.open.set()
    bench.wait(4)
    assert [chunk.status.state for chunk in bench.of("a")] == ["cancelled"] * 3
    until(lambda: bench.stopped == ["a"])  # the language model has ended, but keeps its request open
    assert bench.released == []


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


def test_a_stream_is_cancelled_before_its_first_message(bench: Bench) -> None:
    bench.service.cancel("queued")
    bench.service.cancel("queued")
    until(lambda: bench.stopped == ["queued"] * 2)
    bench.send("queued", audio(8), cancelled=lambda: True)
    bench.wait(1)
    assert bench.answers[0].status.state == "cancelled"
    assert bench.service.stats().live_streams == 0


def test_a_failing_stream_fails_in_band_and_alone(bench: Bench) -> None:
    bench.flow.open.clear()
    bench.send("busy", audio(8))
    assert bench.flow.entered.wait(10)
    for name in ("good", "bad", "fine"):
        bench.send(name, [*audio(7), AUDIO + (BAD_CODE if name == "bad" else 1)])
    bench.flow.open.set()
    bench.wait(4)
    (bad,) = bench.of("bad")
    assert bad.status.state == "failed"
    assert bad.status.reason.startswith("audio decoding failed: IndexError: ")
    assert "\n" not in bad.status.reason
    assert len(bad.pcm) == 0
    until(lambda: bench.stopped == ["bad"])
    for name in ("good", "fine"):
        assert len(bench.pcm(name)) == 256 * (mel_frames(8) - 30)
    bench.send("bad", audio(8))
    bench.send("good", [], state="done")
    bench.wait(6)
    assert bench.of("bad")[-1].status.reason == bad.status.reason
    assert len(bench.pcm("good")) == output_samples(8)
    assert bench.service.stats().ended == {"failed": 1, "done": 1}
    assert [stream for stream, _ in bench.released] == ["good"]


def test_a_long_reason_of_a_failure_is_cut(bench: Bench) -> None:
    def condition(tokens: np.ndarray, frame_token: np.ndarray) -> np.ndarray:
        raise RuntimeError("x" * 100_000)

    bench.flow.condition = condition  # type: ignore[method-assign]
    bench.send("a", audio(8))
    bench.wait(1)
    assert bench.answers[0].status.code == "internal_error"
    assert bench.answers[0].status.reason == f"audio decoding failed: RuntimeError: {'x' * 1000}"[:1000]


def test_a_missing_message_fails_the_stream(bench: Bench) -> None:
    bench.send("a", audio(8))
    bench.send("a", audio(8), index=2)
    bench.wait(2)
    assert bench.answers[-1].status.state == "failed"
    assert "message 2 came when 1 was due" in bench.answers[-1].status.reason
    until(lambda: bench.stopped == ["a"])


def test_a_message_of_an_unknown_stream_is_answered_and_stopped(bench: Bench) -> None:
    bench.send("ghost", audio(8), index=5)
    bench.wait(1)
    assert bench.answers[0].status.state == "failed"
    assert "message 5 belongs to no stream" in bench.answers[0].status.reason
    until(lambda: bench.stopped == ["ghost"])
    assert bench.answers[0].status.code == "bad_message"
    assert bench.service.stats().live_streams == 0


def test_an_end_that_the_language_model_reports_is_passed_on_without_speaking(bench: Bench) -> None:
    bench.send("a", audio(20))
    bench.send("a", [104], state="failed")
    bench.wait(2)
    last = bench.of("a")[-1]
    assert (last.status.state, last.text, len(last.pcm)) == ("failed", "h", 0)
    assert bench.stopped == []
    assert bench.service.stats().live_streams == 0


def test_a_receiver_that_raises_ends_its_stream_only(bench: Bench) -> None:
    def broken(chunk: DecodedChunk) -> None:
        raise RuntimeError("response sender is gone")

    bench.service.submit(Delta(Status("a", 0, "running"), audio(8)), broken)
    bench.send("b", audio(8))
    bench.wait(1)
    until(lambda: bench.stopped == ["a"])
    stats = bench.service.stats()
    assert (stats.reply_errors, stats.live_streams) == (1, 1)


def test_a_stop_that_raises_is_counted_and_the_next_one_runs() -> None:
    def stop(stream: str) -> None:
        if stream == "a":
            raise RuntimeError("no such model")

    bench = make(stop=stop)
    for name in "ab":
        bench.send(name, audio(8), cancelled=lambda: True)
    until(lambda: bench.stopped == ["a", "b"])
    until(lambda: bench.service.stats().notify_errors == 1)
    assert bench.service.stats().cancels == 2
    bench.service.close()


def test_the_last_answer_leaves_although_released_fails() -> None:
    bench = make()

    def notify(message: object) -> None:
        raise RuntimeError("no such model")

    bench.service._notifier._notify = notify
    bench.send("a", audio(8), state="done")
    bench.wait(1)
    assert bench.answers[-1].status.state == "done"
    assert bench.service.stats().notify_errors == 1
    bench.service.close()


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


def test_an_idle_stream_is_freed_and_stopped_and_others_stay() -> None:
    bench = make(idle_timeout_s=0.5)
    bench.send("idle", audio(8))
    bench.wait(1)
    end, sent = time.monotonic() + 1.2, 1
    while time.monotonic() < end:
        bench.send("live", audio(1, sent - 1))
        sent += 1
        bench.wait(sent)
        time.sleep(0.02)
    assert bench.stopped == ["idle"]
    stats = bench.service.stats()
    assert (stats.live_streams, stats.ended) == (1, {"evicted": 1})
    bench.send("idle", audio(8))
    bench.wait(sent + 1)
    assert bench.answers[-1].status.reason == "no message for 0.5 s"
    until(lambda: bench.service.stats().live_streams == 0)
    bench.service.close()


def test_close_answers_what_waits_and_ends_the_threads() -> None:
    before = set(threading.enumerate())
    bench = make()
    bench.flow.open.clear()
    bench.send("a", audio(8))
    assert bench.flow.entered.wait(10)
    bench.send("a", audio(12))
    bench.send("b", audio(8))
    closing = threading.Thread(target=bench.service.close)
    closing.start()
    bench.flow.open.set()
    closing.join(10)
    assert not closing.is_alive()
    assert set(threading.enumerate()) <= before
    bench.wait(3)
    assert bench.of("a")[0].status.state == "running"
    assert [chunk.status.state for chunk in bench.answers[1:]] == ["failed", "failed"]
    bench.send("late", audio(8))
    bench.wait(4)
    assert "shut down" in bench.answers[-1].status.reason
    bench.service.close()


def test_a_broken_service_thread_leaves_nobody_waiting() -> None:
    bench = make()
    bench.send("a", audio(8))
    bench.wait(1)

    def due(state: object) -> int | None:
        raise RuntimeError("broken")

    bench.service._choose = due  # type: ignore[assignment, method-assign]
    bench.send("a", audio(40))
    bench.send("b", audio(8))
    bench.wait(3)
    assert [chunk.status.state for chunk in bench.answers[1:]] == ["failed"] * 2
    until(lambda: {"a", "b"} <= set(bench.stopped))
    bench.send("late", audio(8))  # the language model goes on without a decoder: it is stopped
    bench.service.cancel("gone")
    bench.wait(4)
    until(lambda: {"late", "gone"} <= set(bench.stopped))
    bench.service.close()


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
