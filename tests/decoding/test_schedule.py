"""The decode schedule and the checks of its settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.contract.errors import EngineError
from vita_audio.contract.rates import mel_frames
from vita_audio.decoding.flow_stream import window_span
from vita_audio.decoding.frames import first_frame_of, token_of_frame
from vita_audio.decoding.schedule import DecoderConfig, next_decode


def points(config: DecoderConfig, count: int) -> list[int]:
    due, decoded = [], 0
    for _ in range(count):
        decoded = next_decode(config, decoded)
        due.append(decoded)
    return due


def test_schedule_starts_with_the_first_burst_and_then_keeps_to_the_grid() -> None:
    assert points(DecoderConfig(), 6) == [8, 20, 60, 100, 140, 180]
    assert points(DecoderConfig(chunk_tokens=(10, 20, 40)), 6) == [8, 10, 30, 70, 110, 150]
    assert points(DecoderConfig(first_chunk_tokens=15, chunk_tokens=(20,)), 3) == [15, 20, 40]


@given(
    st.integers(5, 9), st.lists(st.integers(1, 6).map(lambda n: 10 * n), min_size=1, max_size=4), st.integers(0, 900)
)
def test_next_decode_is_ahead_on_the_grid_and_consistent(first: int, sizes: list[int], decoded: int) -> None:
    config = DecoderConfig(first_chunk_tokens=first, chunk_tokens=tuple(sizes))
    due = next_decode(config, decoded)
    assert due > decoded
    assert due == first or due % 10 == 0
    assert due in points(config, 100)
    between = [point for point in points(config, 100) if decoded < point < due]
    assert between == []


@given(st.integers(0, 5000), st.integers(1, 10).map(lambda n: 10 * n), st.integers(1, 60))
def test_windows_start_on_the_grid_and_hold_enough_context(final_frames: int, context: int, new: int) -> None:
    stop_token = token_of_frame(final_frames) + 1 + new
    span = window_span(final_frames, stop_token, context, 10)
    token = token_of_frame(final_frames)
    assert span.first_token % 10 == 0
    assert span.first_token == 0 or context <= token - span.first_token < context + 10
    assert first_frame_of(span.first_token) <= span.first_frame <= final_frames <= span.stop_frame
    assert span.stop_frame == mel_frames(stop_token)
    assert token_of_frame(span.first_frame) >= span.first_token
    assert token_of_frame(span.stop_frame - 1) < stop_token
    same = {
        window_span(final_frames + 64 * k, stop_token, context, 10).frames
        for k in range(2)
        if window_span(final_frames + 64 * k, stop_token, context, 10).first_token == span.first_token
    }
    assert same == {span.frames}


@given(st.integers(0, 40), st.integers(20, 60))
def test_frames_of_a_later_window_depend_on_its_tokens_alone(grid: int, tokens: int) -> None:
    context, start = 30, 10 * grid + 10
    final = first_frame_of(start + context)
    span = window_span(final, start + context + tokens, context, 10)
    assert span.first_token == start
    assert span.frames == mel_frames(context + tokens) - 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("first_chunk_tokens", 0),
        ("first_chunk_tokens", 4),  # 27 frames, 30 held back
        ("chunk_tokens", ()),
        ("chunk_tokens", (8,)),
        ("chunk_tokens", (20, 0)),
        ("chunk_tokens", (7,)),
        ("context_tokens", 0),
        ("flow_steps", 0),
        ("flow_hold_back_frames", -1),
        ("flow_fade_frames", 13),
        ("vocoder_hold_back_frames", 4),
        ("vocoder_context_frames", 4),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(EngineError, match=field):
        DecoderConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"first_chunk_tokens": 5},  # 34 frames, 30 held back
        {"first_chunk_tokens": 19, "chunk_tokens": (20,)},
        {"context_tokens": 1},
        {"flow_steps": 1},
        {"flow_steps": 100},
        {"flow_hold_back_frames": 0, "flow_fade_frames": 0},
        {"flow_fade_frames": 12},
        {"vocoder_hold_back_frames": 5},
        {"vocoder_hold_back_frames": 100, "first_chunk_tokens": 19},
        {"vocoder_context_frames": 5},
        {"vocoder_context_frames": 100},
    ],
)
def test_a_setting_at_its_limit_is_valid(values: dict[str, object]) -> None:
    DecoderConfig(**values)  # type: ignore[arg-type]
    beyond = {"flow_steps": 101, "vocoder_hold_back_frames": 101, "vocoder_context_frames": 101}
    for name in beyond.keys() & values.keys():
        with pytest.raises(EngineError, match=name):
            DecoderConfig(**{**values, name: beyond[name]})  # type: ignore[arg-type]


def test_more_must_be_made_than_is_held_back() -> None:
    """5 tokens make 34 frames: 33 may be held back in all, 34 not."""
    held = {"first_chunk_tokens": 5, "flow_fade_frames": 0, "flow_hold_back_frames": 15}
    DecoderConfig(**held, vocoder_hold_back_frames=18)
    with pytest.raises(EngineError, match="more than the 34 frames held back in all, but it makes 34"):
        DecoderConfig(**held, vocoder_hold_back_frames=19)


@pytest.mark.parametrize(("field", "value"), [("chunk_tokens", (20, 25)), ("context_tokens", 35)])
def test_sizes_off_the_block_grid_are_named(field: str, value: object) -> None:
    with pytest.raises(EngineError, match=f"{field}.*block of 10"):
        DecoderConfig(**{field: value}).check_grid(10)  # type: ignore[arg-type]
