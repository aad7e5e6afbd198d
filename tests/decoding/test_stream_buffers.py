"""Slots of the decoder's buffers: their memory, their places, and what happens when none is left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.contract.errors import EngineError
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.stream_buffers import StreamBuffers, ring_bytes
from vita_audio.engines.arrays import HostArrays

MELS, FRAMES = 5, 40


def buffers(held: int = 12, streams: int = 3) -> StreamBuffers:
    config = DecoderConfig(flow_hold_back_frames=held, flow_fade_frames=0)
    return StreamBuffers(HostArrays(), config, streams, FRAMES, MELS)


@pytest.mark.parametrize("held", [0, 1, 12])
def test_memory_of_a_slot_is_that_of_its_arrays(held: int) -> None:
    made = buffers(held)
    arrays = (made.mel, made.held, made.noise, made.source, made.phase)
    config = DecoderConfig(flow_hold_back_frames=held, flow_fade_frames=0)
    assert sum(array.nbytes for array in arrays) == (made.streams + 1) * ring_bytes(config, FRAMES, MELS)


def test_a_slot_is_given_to_one_stream_at_a_time_and_slot_0_to_none() -> None:
    made = buffers()
    taken = [made.take() for _ in range(3)]
    assert sorted(taken) == [1, 2, 3]
    with pytest.raises(EngineError, match="streams: 3 are decoded"):
        made.take()
    made.give_back(taken[1])
    assert made.take() == taken[1]


@given(st.integers(0, 500), st.integers(0, FRAMES), st.integers(0, 500), st.integers(0, FRAMES))
def test_slots_have_no_place_in_common_and_a_frame_keeps_its_own(first: int, count: int, other: int, more: int) -> None:
    made = buffers()
    places, others = made.places(1, first, first + count), made.places(2, other, other + more)
    assert not set(places) & set(others)
    assert len(set(places)) == count
    assert set(places) | set(others) <= set(range(len(made.mel)))
    np.testing.assert_array_equal(made.places(1, first + FRAMES, first + FRAMES + count), places)


@given(st.integers(0, 50), st.integers(0, 500), st.integers(0, 12))
def test_held_frames_are_written_where_the_next_decode_reads_them_and_this_one_does_not(
    decodes: int, first: int, count: int
) -> None:
    made = buffers()
    read, written = (made.held_places(2, decodes + more, first, first + count) for more in (0, 1))
    assert not set(read) & set(written)
    assert len(set(read)) == count
    assert set(read) | set(written) <= set(range(2 * 2 * 12, 3 * 2 * 12))
    np.testing.assert_array_equal(made.held_places(2, decodes + 2, first, first + count), read)
