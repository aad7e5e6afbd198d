"""The decoding service: one answer per message in order, batches, priority, idle streams, the shutdown."""

from __future__ import annotations

import threading
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_bench import AUDIO, Bench, audio, make
from decoding_doubles import EVERY_20, FlowDouble, VocoderDouble
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ, mel_frames, output_samples
from vita_audio.decoding.decoder import StreamingDecoder
from waiting import until


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


def test_a_batch_is_no_larger_than_it_may_be_and_stats_count_what_waits() -> None:
    bench = make(max_batch=2)
    bench.flow.open.clear()
    bench.send("first", audio(8))
    assert bench.flow.entered.wait(10)
    for name in "abcde":
        bench.send(name, audio(8))
    bench.send("a", audio(1, 8))
    stats = bench.service.stats()
    assert (stats.live_streams, stats.waiting_requests) == (1, 7)
    bench.flow.open.set()
    bench.wait(7)
    stats = bench.service.stats()
    assert (stats.live_streams, stats.waiting_requests, stats.batches) == (6, 0, {1: 2, 2: 2})
    assert stats.busy_ms > 0
    bench.service.close()


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


def test_the_longest_idle_stream_makes_room_for_a_new_one() -> None:
    """A client can open streams past the ensemble, and leave them."""
    bench = make(max_streams=3)
    for number, name in enumerate(["a", "b", "c"]):
        bench.send(name, audio(1))
        bench.wait(number + 1)
    bench.send("a", audio(1))
    bench.wait(4)
    bench.send("new", audio(1))
    bench.wait(5)
    assert bench.service.stats().ended == {"evicted": 1}
    until(lambda: bench.stopped == ["b"])
    bench.flow.open.clear()  # now none is idle
    for name in ("a", "c", "new"):
        bench.send(name, audio(8))
    bench.send("more", audio(1))
    bench.flow.open.set()
    bench.wait(9)
    assert bench.service.stats().ended == {"evicted": 1}
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
