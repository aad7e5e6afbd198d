"""Heartbeats: what a launcher reads of the threads of a model process, and what ends such a process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from serving.heartbeat import EXIT_BROKEN, THREADS, HeartbeatReader, Heartbeats
from serving.metrics.recorder import Recorder


def test_nothing_is_expected_of_a_thread_before_its_first_beat(tmp_path: Path) -> None:
    beats = Heartbeats(tmp_path / "speech_lm_0_0")
    assert HeartbeatReader(tmp_path).read() == {"speech_lm_0_0": {}}
    beats.pulse("generation").beat()
    assert HeartbeatReader(tmp_path).read()["speech_lm_0_0"].keys() == {"generation"}


def test_a_beat_is_the_time_of_one_clock_and_calls_show_while_they_last(tmp_path: Path) -> None:
    pulse = Heartbeats(tmp_path / "w").pulse("decoding")
    before_ms = time.monotonic_ns() // 1_000_000
    pulse.beat()
    first = HeartbeatReader(tmp_path).read()["w"]["decoding"]
    assert before_ms <= first.at_ms <= time.monotonic_ns() // 1_000_000
    assert not first.calling
    time.sleep(0.002)
    with pulse.call():
        inside = HeartbeatReader(tmp_path).read()["w"]["decoding"]
        assert inside.calling
        assert inside.at_ms > first.at_ms
    assert not HeartbeatReader(tmp_path).read()["w"]["decoding"].calling


def test_a_call_that_fails_is_over(tmp_path: Path) -> None:
    pulse = Heartbeats(tmp_path / "w").pulse("generation")
    pulse.beat()
    with pytest.raises(RuntimeError), pulse.call():
        raise RuntimeError("engine")
    assert not HeartbeatReader(tmp_path).read()["w"]["generation"].calling


def test_a_thread_that_only_has_calls_rests_between_them(tmp_path: Path) -> None:
    pulse = Heartbeats(tmp_path / "w").pulse("execute")
    with pulse.call():
        assert HeartbeatReader(tmp_path).read()["w"]["execute"].calling
    assert HeartbeatReader(tmp_path).read()["w"] == {}


def test_each_thread_and_process_has_a_row_of_its_own(tmp_path: Path) -> None:
    for worker in ("a", "b"):
        beats = Heartbeats(tmp_path / worker)
        for thread in THREADS:
            beats.pulse(thread).beat()
    assert {worker: list(beats) for worker, beats in HeartbeatReader(tmp_path).read().items()} == {
        "a": list(THREADS),
        "b": list(THREADS),
    }


def test_a_reader_sees_later_beats(tmp_path: Path) -> None:
    pulse = Heartbeats(tmp_path / "w").pulse("prober")
    reader = HeartbeatReader(tmp_path)
    assert reader.read() == {"w": {}}
    pulse.beat()
    assert reader.read()["w"].keys() == {"prober"}


def test_an_unknown_thread_has_no_row() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        Heartbeats().pulse("thread of somebody else")


def test_ages_are_recorded_and_a_thread_at_rest_has_none() -> None:
    beats, recorder = Heartbeats(None, "prompt", "prompt_0_0"), Recorder()
    beats.pulse("metrics").beat()
    with beats.pulse("execute").call():
        time.sleep(0.01)
        beats.measure(recorder)
    gauges = recorder.take().gauges
    assert {labels for _, labels in gauges} == {
        ("prompt", "metrics", "prompt_0_0"),
        ("prompt", "execute", "prompt_0_0"),
    }
    assert all(10 <= age_ms < 10_000 for age_ms in gauges.values())
    beats.measure(recorder)
    assert recorder.take().gauges["vita_heartbeat_age_ms", ("prompt", "execute", "prompt_0_0")] == 0


def test_a_broken_loop_ends_the_process_even_with_other_threads_running() -> None:
    """As in a model process: the main thread belongs to Triton and waits for requests."""
    program = (
        "import threading, time\n"
        "from serving.heartbeat import Heartbeats\n"
        "pulse = Heartbeats().pulse('generation')\n"
        "threading.Thread(target=pulse.broken).start()\n"
        "time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert ended.returncode == EXIT_BROKEN
    assert "thread generation has ended: this process ends" in ended.stderr


def test_the_end_of_a_broken_loop_is_called_once() -> None:
    ended = threading.Event()
    Heartbeats(end=ended.set).pulse("prober").broken()
    assert ended.is_set()
