"""What a group keeps of a stream: each time under its own name, and only where it means something."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.group import METRICS, Group
from loadtest.record import StreamRecord

#: Every time another one; rtf in ms for each second of sound, an underrun in ms.
TIMES = {
    "ttfa": 100, "first_pcm": 90, "first_text": 70, "total": 2000,
    "gap": 20, "rtf": 500, "underrun": 250, "start_delay": 3,
}  # fmt: skip


def record(**changes: Any) -> StreamRecord:
    known: dict[str, Any] = {
        "scenario": "tts", "seed": 1, "start_s": 0.0, "warm_up": False, "phase": "", "outcome": "done", "error": "",
        "total_ms": 2000.0, "first_pcm_ms": 90.0, "first_text_ms": 70.0, "ttfa_ms": 100.0, "audio_s": 4.0,
        "real_time_factor": 0.5, "underruns": 1, "underrun_s": 0.25, "gaps_ms": (20.0,), "start_delay_ms": 3.0,
        "tokens": 60, "stages_ms": {"lm": 3.25}, "lead": (),
    }  # fmt: skip
    return StreamRecord(**{**known, **changes})


def times(*records: StreamRecord) -> dict[str, float]:
    group = Group()
    for each in records:
        group.add(each)
    return {name: p for name in METRICS if (p := group.histogram(name).percentile(100)) is not None}


def test_each_time_has_its_own_histogram() -> None:
    assert times(record()) == pytest.approx(TIMES, rel=0.01)


def test_times_that_mean_nothing_are_not_kept() -> None:
    rejected = record(outcome="rejected", total_ms=7.0, first_pcm_ms=None, first_text_ms=None, ttfa_ms=None, gaps_ms=(),
                      underruns=0, audio_s=0.0, real_time_factor=None)  # fmt: skip
    assert times(rejected) == pytest.approx({"start_delay": 3, "rejection": 7}, rel=0.01)
    interrupted = times(record(outcome="interrupted", underruns=0))
    assert interrupted.keys() == TIMES.keys() - {"total", "rtf", "underrun"}


def test_sums_and_counts_of_a_group() -> None:
    group = Group()
    for each in (record(), record(ttfa_ms=None, underruns=0), record(outcome="failed", first_pcm_ms=None)):
        group.add(each)
    assert (group.audio_s, group.underrun_s, group.tokens, group.total_ms) == (12.0, 0.75, 180, 6000.0)
    assert (group.staged_audio_s, group.stages_ms) == (8.0, {"lm": 6.5})
    assert group.counts == {"done": 2, "failed": 1, "spoken": 2, "broken": 1, "silent": 1}
    assert (group.streams, group.lost) == (3, 1)
