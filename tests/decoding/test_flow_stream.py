"""How windows of the flow are joined: what is held, what fades into what, what the next window is given."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from decoding_doubles import FlowDouble
from vita_audio.decoding.flow_stream import (
    FlowState,
    FlowWindow,
    WindowSpan,
    advance,
    make_window,
    release_held,
    run_windows,
    window_start,
)
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import DecoderConfig

CONFIG = DecoderConfig(flow_hold_back_frames=12, flow_fade_frames=4)


def frames(values: list[float]) -> np.ndarray:
    return np.tile(np.asarray(values, np.float32), (2, 1))


def test_held_frames_fade_into_those_made_again() -> None:
    """Over four frames the new ones gain a fifth each; behind them the window stands as it is."""
    state = FlowState(8, 10, frames([0.0] * 10), held=frames([0.0] * 12))
    new, voiced = advance(state, WindowSpan(0, 20, 0, 137), frames([1.0] * 137), CONFIG, 10, final=False)
    assert voiced.shape == (2, 137 - 10 - 12)
    np.testing.assert_allclose(voiced[0, :6], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rtol=1e-6)
    assert (new.decoded_tokens, new.final_frames, new.held.shape[1]) == (20, 125, 12)
    np.testing.assert_array_equal(new.context[:, :10], 0.0)
    np.testing.assert_array_equal(new.context[:, 10:], voiced)


@pytest.mark.parametrize(("held", "made", "faded"), [(2, 30, 2), (12, 3, 3), (0, 30, 0), (12, 30, 4)])
def test_a_fade_is_no_longer_than_what_there_is(held: int, made: int, faded: int) -> None:
    state = FlowState(8, 5, frames([0.0] * 5), held=frames([0.0] * held))
    span = WindowSpan(0, 20, 0, 5 + made)
    _, voiced = advance(state, span, frames([9.0] * 5 + [1.0] * made), CONFIG, 10, final=True)
    expected = [(i + 1) / (faded + 1) for i in range(faded)] + [1.0] * (made - faded)
    np.testing.assert_allclose(voiced[0], expected, rtol=1e-6)


def test_the_last_window_holds_nothing_and_a_short_one_everything() -> None:
    state = FlowState(8, 5, frames([0.0] * 5), held=frames([]))
    span = WindowSpan(0, 20, 0, 15)
    new, voiced = advance(state, span, frames([1.0] * 15), CONFIG, 10, final=True)
    assert (voiced.shape[1], new.held.shape[1], new.final_frames) == (10, 0, 15)
    new, voiced = advance(state, span, frames([1.0] * 15), CONFIG, 10, final=False)
    assert (voiced.shape[1], new.held.shape[1], new.final_frames) == (0, 10, 5)
    after, rest = release_held(new)
    assert (after.final_frames, after.held.shape[1], rest.shape[1], after.decoded_tokens) == (15, 0, 10, 20)


def test_a_window_is_given_the_final_frames_where_they_are() -> None:
    """40 tokens from token 10 on: frames from 69 on; 90 are final, the context has the last 30 of them."""
    context = np.arange(60, 90, dtype=np.float32)
    state = FlowState(20, 90, frames(list(context)), held=frames([]))
    noise = StreamNoise(3)
    window = make_window(state, WindowSpan(10, 50, 69, 344), list(range(100, 160)), noise)
    assert window.tokens.tolist() == list(range(110, 150))
    np.testing.assert_array_equal(window.cond[0, :21], np.arange(69, 90))
    assert not window.cond[:, 21:].any()
    np.testing.assert_array_equal(window.noise, noise.flow(69, 344, 2))
    assert window.frame_token.tolist() == [frame * 64 // 441 - 10 for frame in range(69, 344)]
    fresh = make_window(FlowState.empty(2), WindowSpan(0, 8, 0, 55), list(range(8)), noise)
    assert not fresh.cond.any()


@pytest.mark.parametrize(("final", "start"), [(0, 0), (275, 0), (276, 10), (344, 10), (345, 20)])
def test_a_window_starts_on_the_grid_behind_its_context(final: int, start: int) -> None:
    assert window_start(final, context_tokens=30, block_tokens=10) == start  # frame 276 is the first of token 40


def test_euler_steps_are_taken_from_the_start_of_each_on_the_cosine_grid() -> None:
    """The engine's velocity is t itself: the sum of t_i (t_i+1 - t_i), and each time as it was asked for."""
    asked: list[float] = []

    class Linear(FlowDouble):
        def velocity(self, x: np.ndarray, mu: np.ndarray, cond: np.ndarray, t: float) -> np.ndarray:
            asked.append(t)
            return np.full_like(x, t)

    window = FlowWindow(np.arange(3), np.zeros(5, np.int64), np.zeros((4, 5), np.float32), np.zeros((4, 5), np.float32))
    [mel] = run_windows(Linear(), [window], 4)
    grid = [1 - np.cos(np.pi / 2 * i / 4) for i in range(5)]
    np.testing.assert_allclose(asked, grid[:4])
    np.testing.assert_allclose(mel, sum(a * (b - a) for a, b in pairwise(grid)), rtol=1e-5)
