"""Failures in the decoding service: reported in band, confined to their stream, with no request left waiting."""

from __future__ import annotations

import numpy as np
import pytest

from decoding_bench import AUDIO, Bench, audio, make
from vita_audio.contract.messages import Delta, Status
from vita_audio.contract.rates import mel_frames, output_samples
from vita_audio.decoding import service
from vita_audio.decoding.served_stream import DecodedChunk
from waiting import until

BAD_CODE = 999  # the stand-in flow knows 64 codes


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


def test_a_stream_whose_sound_is_not_finite_fails_alone(bench: Bench) -> None:
    """Found when the batch is through, not when it is started."""
    solve = bench.flow.velocity
    poison = 63

    def velocity(x: np.ndarray, mu: np.ndarray, cond: np.ndarray, t: float) -> np.ndarray:
        return np.where(np.arange(len(x))[:, None, None] == poisoned[0], np.nan, solve(x, mu, cond, t))

    def condition(tokens: np.ndarray, frame_token: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero((tokens == poison).any(axis=1))
        poisoned[0] = rows[0] if len(rows) else -1
        return type(bench.flow).condition(bench.flow, tokens, frame_token)

    poisoned = [-1]
    bench.flow.velocity, bench.flow.condition = velocity, condition  # type: ignore[method-assign]
    bench.flow.open.clear()
    bench.send("busy", [AUDIO] * 8)
    assert bench.flow.entered.wait(10)
    for name in ("good", "bad", "fine"):
        bench.send(name, [*[AUDIO] * 7, AUDIO + (poison if name == "bad" else 1)])
    bench.flow.open.set()
    bench.wait(4)
    (bad,) = bench.of("bad")
    assert (bad.status.state, len(bad.pcm)) == ("failed", 0)
    assert "finite" in bad.status.reason
    until(lambda: bench.stopped == ["bad"])
    for name in ("busy", "good", "fine"):
        assert len(bench.pcm(name)) == 256 * (mel_frames(8) - 30)
        bench.send(name, [], state="done")
    bench.wait(7)
    assert bench.service.stats().ended == {"failed": 1, "done": 3}


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


def test_only_the_last_streams_that_ended_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that ends leaves a word behind for its late messages, and not for ever."""
    monkeypatch.setattr(service, "_REMEMBERED_STREAMS", 2)
    for number, name in enumerate("abcd", 1):
        bench.send(name, [], state="failed")
        bench.wait(number)
    assert list(bench.service._ended) == ["c", "d"]
    for number, name in enumerate("abcd", 5):
        bench.send(name, audio(8))
        bench.wait(number)
    reasons = [bench.of(name)[-1].status.reason for name in "abcd"]
    assert ["belongs to no stream" in reason for reason in reasons] == [True, True, False, False]


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
