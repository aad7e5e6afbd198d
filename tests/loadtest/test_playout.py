"""The playout model against a player that plays sample by sample."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.playout import Chunk, Playout, play

RATE_HZ = 100
gaps = st.floats(0, 2, allow_nan=False)
streams = st.lists(st.tuples(gaps, st.integers(0, 60)), max_size=12).map(
    lambda steps: [
        Chunk(arrived_s, samples)
        for arrived_s, (_, samples) in zip(np.cumsum([gap for gap, _ in steps]).tolist(), steps, strict=True)
    ]
)


def played_one_by_one(chunks: list[Chunk], prebuffer_s: float) -> list[float]:
    """When each sample is played: never before it is there, never before the one before it is over."""
    times: list[float] = []
    for chunk in chunks:
        for _ in range(chunk.samples):
            free_s = times[-1] + 1 / RATE_HZ if times else chunk.arrived_s + prebuffer_s
            times.append(max(chunk.arrived_s, free_s))
    return times


def played_at_s(played: Playout, sample: int) -> float:
    """When this sample is played, by what is said of the underruns."""
    first_s, prebuffer_s = played.lead[0]
    silent_s = sum(underrun.seconds for underrun in played.underruns if underrun.sample <= sample)
    return first_s + prebuffer_s + sample / RATE_HZ + silent_s


@given(streams, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_every_sample_is_played_when_a_plain_player_plays_it(chunks: list[Chunk], prebuffer_s: float) -> None:
    played = play(chunks, RATE_HZ, prebuffer_s)
    times = played_one_by_one(chunks, prebuffer_s)
    assert [played_at_s(played, i) for i in range(played.samples)] == pytest.approx(times, abs=1e-4)
    if times:
        lost_s = times[-1] - times[0] - (len(times) - 1) / RATE_HZ
        assert played.underrun_s == pytest.approx(lost_s, abs=1e-4)
        waits = [later - earlier - 1 / RATE_HZ for earlier, later in pairwise(times)]
        assert len([w for w in waits if w > 1e-3]) <= len(played.underruns) <= len([w for w in waits if w > 1e-7])


@given(streams, st.integers(0, 11), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_cutting_a_chunk_in_two_changes_nothing(chunks: list[Chunk], which: int, at: int) -> None:
    cut = [
        piece
        for number, chunk in enumerate(chunks)
        for piece in (
            (Chunk(chunk.arrived_s, min(at, chunk.samples)), Chunk(chunk.arrived_s, max(0, chunk.samples - at)))
            if number == which
            else (chunk,)
        )
    ]
    whole, pieces = play(chunks, RATE_HZ), play(cut, RATE_HZ)
    assert (pieces.underruns, pieces.samples) == (whole.underruns, whole.samples)


@given(streams, st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_waiting_longer_before_playing_never_adds_silence(chunks: list[Chunk], prebuffer_s: float) -> None:
    assert play(chunks, RATE_HZ, prebuffer_s).underrun_s <= play(chunks, RATE_HZ).underrun_s + 1e-6


def test_lead_and_underruns_of_a_known_stream() -> None:
    # 0.5 s at 1.0; 0.5 s at 1.2 (in time); 0.5 s at 2.3 (0.3 s late); 0.1 s at 2.8 (to the point)
    chunks = [Chunk(1.0, 50), Chunk(1.2, 50), Chunk(2.3, 50), Chunk(2.8, 10)]
    played = play(chunks, RATE_HZ)
    assert [(u.at_s, u.sample) for u in played.underruns] == [(2.0, 100)]
    assert played.underrun_s == pytest.approx(0.3)
    assert [lead for _, lead in played.lead] == pytest.approx([0, 0.5, 0.3, 0.8, -0.3, 0.5, 0, 0.1])
    assert played.least_lead_s == pytest.approx(-0.3)
    assert (played_at_s(played, 99), played_at_s(played, 100)) == pytest.approx((1.99, 2.3))


def test_a_stream_without_sound_has_no_playout() -> None:
    for chunks in ([], [Chunk(1.0, 0)]):
        played = play(chunks, RATE_HZ)
        assert (played.samples, played.underrun_s, played.least_lead_s, played.lead) == (0, 0, None, ())
