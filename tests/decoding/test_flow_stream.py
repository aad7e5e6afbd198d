"""How windows of the flow are joined: what is held, what fades into what, what the next window is given."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoding_doubles import FlowDouble
from vita_audio.decoding.flow_stream import (
    FlowState,
    WindowSpan,
    advance,
    make_mel,
    noise_frames,
    release_held,
    solve,
    weights_of_new,
    window_inputs,
    window_shapes,
    window_span,
    window_start,
)
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.stream_buffers import StreamBuffers, ring_frames
from vita_audio.engines.arrays import Arrays, HostArrays
from vita_audio.engines.torch_cuda.device_arrays import DeviceArrays

CONFIG = DecoderConfig(flow_hold_back_frames=12, flow_fade_frames=4)
SHORT = DecoderConfig(context_tokens=7, flow_hold_back_frames=0, flow_fade_frames=0)
ARRAYS = [HostArrays(), DeviceArrays(torch.device("cpu"))]
both = pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
SLOT, MELS = 2, 4


class Ones:
    """A flow whose mel is 1 everywhere; keeps what it was given."""

    mel_channels, block_tokens, vocab_size = MELS, 10, 200

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.x: Any = None
        self.cond: Any = None

    def condition(self, tokens: Any, frame_token: Any) -> Any:
        return self.arrays.zeros((len(tokens), MELS, frame_token.shape[-1]), "float32")

    def velocity(self, x: Any, mu: Any, cond: Any, t: float) -> Any:
        raise NotImplementedError

    def solve(self, x: Any, mu: Any, cond: Any, times: list[float]) -> Any:
        self.x, self.cond = np.array(x), np.asarray(cond)
        return self.arrays.zeros(x.shape, "float32") + 1.0


def buffers_with(arrays: Arrays, mel: list[float]) -> StreamBuffers:
    """Frame i of the stream in slot 2 is mel[i]; those that are held were made by the first decode."""
    buffers = StreamBuffers(arrays, CONFIG, streams=3, frames=400, mel_channels=MELS)
    values = np.tile(np.asarray(mel, np.float32)[:, None], (1, MELS))
    buffers.mel[buffers.places(SLOT, 0, len(mel))] = values if arrays.xp is np else torch.from_numpy(values)
    buffers.mel[:400] = buffers.held[:24] = float("nan")  # slot 0: of nobody
    return buffers


def decode(
    buffers: StreamBuffers, flow: Ones, state: FlowState, span: WindowSpan, config: DecoderConfig = CONFIG
) -> np.ndarray:
    """Frames of the stream after a window [frames]."""
    row = window_inputs(buffers, SLOT, state, span, list(range(300)), StreamNoise(3), config, MELS)
    up = (lambda a: a) if flow.arrays.xp is np else torch.from_numpy
    make_mel(flow.arrays, flow, buffers, 4, {name: up(np.ascontiguousarray(a[None])) for name, a in row.items()})
    return np.asarray(buffers.mel)[buffers.places(SLOT, 0, span.stop_frame), 0]


@both
def test_held_frames_fade_into_those_made_again(arrays: Arrays) -> None:
    """Over four frames the new ones gain a fifth each; behind them the window stands as it is."""
    buffers, flow = buffers_with(arrays, [5.0] * 10), Ones(arrays)
    state, span = FlowState(8, 10, 12, decodes=1), WindowSpan(0, 20, 0, 137)
    made = decode(buffers, flow, state, span)
    np.testing.assert_array_equal(made[:10], 5.0)
    np.testing.assert_allclose(made[10:16], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(flow.cond[0, :, :10], 5.0)
    assert not flow.cond[0, :, 10:].any()
    # Again: what it faded from it has left alone.
    np.testing.assert_array_equal(decode(buffers, flow, state, span), made)


@both
def test_the_next_window_fades_from_what_this_one_held(arrays: Arrays) -> None:
    buffers, flow = buffers_with(arrays, []), Ones(arrays)
    first, second = WindowSpan(0, 8, 0, 55), WindowSpan(0, 20, 0, 137)
    decode(buffers, flow, FlowState(), first)
    state = advance(FlowState(), first, CONFIG, final=False)
    assert state == FlowState(8, 43, 12, 1)
    held = np.asarray(buffers.held)[buffers.held_places(SLOT, 1, 43, 55)]
    np.testing.assert_array_equal(held, 1.0)
    flow.solve = lambda x, mu, cond, times: arrays.zeros(x.shape, "float32")  # type: ignore[method-assign]
    np.testing.assert_allclose(decode(buffers, flow, state, second)[43:48], [0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-6)


@pytest.mark.parametrize(("held", "made", "faded"), [(2, 30, 2), (12, 3, 3), (0, 30, 0), (12, 30, 4)])
def test_a_fade_is_no_longer_than_what_there_is(held: int, made: int, faded: int) -> None:
    weights = weights_of_new(FlowState(8, 5, held), WindowSpan(0, 20, 0, 5 + made), CONFIG)
    expected = [0.0] * 5 + [(i + 1) / (faded + 1) for i in range(faded)] + [1.0] * (made - faded)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_last_window_holds_nothing_and_a_short_one_everything() -> None:
    state, span = FlowState(8, 5, decodes=1), WindowSpan(0, 20, 0, 15)
    assert advance(state, span, CONFIG, final=True) == FlowState(20, 15, 0, 2)
    held = advance(state, span, CONFIG, final=False)
    assert held == FlowState(20, 5, 10, 2)
    assert release_held(held) == FlowState(20, 15, 0, 2)


def test_a_window_is_given_the_final_frames_where_they_are() -> None:
    """40 tokens from token 10 on: frames from 69 on, of which those before 90 are final."""
    arrays, noise = HostArrays(), StreamNoise(3)
    buffers, flow = buffers_with(arrays, [float(i) for i in range(90)]), Ones(arrays)
    state, span = FlowState(20, 90), WindowSpan(10, 50, 69, 344)
    row = window_inputs(buffers, SLOT, state, span, list(range(100, 160)), noise, CONFIG, MELS)
    assert row["tokens"].tolist() == list(range(110, 150))
    np.testing.assert_array_equal(row["noise"], noise.flow(344 - len(row["noise"]), 344, MELS).T)
    assert row["frame_token"].tolist() == [frame * 64 // 441 - 10 for frame in range(69, 344)]
    decode(buffers, flow, state, span)
    np.testing.assert_array_equal(flow.cond[0, 0, :21], np.arange(69, 90))
    assert not flow.cond[:, :, 21:].any()


@both
@pytest.mark.parametrize("config", [CONFIG, SHORT], ids=["context of 30", "context of 7"])
def test_every_window_starts_from_the_noise_of_its_frames(arrays: Arrays, config: DecoderConfig) -> None:
    """Bit for bit, though past the start only what is new is uploaded; the slot held another stream before."""
    buffers = StreamBuffers(arrays, config, 3, ring_frames(config, 10), MELS)
    flow, noise = Ones(arrays), StreamNoise(3)
    buffers.noise[:] = float("nan")
    for last in (5, 39, 1):
        state, uploaded = FlowState(), []
        for stop in (8, 20, 40, 80, 120, 160, 200, 200 + last):
            span = window_span(state.final_frames, stop, config.context_tokens, 10)
            decode(buffers, flow, state, span, config)
            np.testing.assert_array_equal(flow.x[0], noise.flow(span.first_frame, span.stop_frame, MELS))
            assert noise_frames(span, config) >= span.stop_frame - state.final_frames - state.held_frames
            uploaded.append(noise_frames(span, config))
            state = advance(state, span, config, final=stop > 200)
        assert sum(uploaded[4:7]) <= 3 * (276 + 69 + 12 + 8)  # each 40 tokens, the grid of 10, held frames, rounding


@pytest.mark.parametrize("config", [CONFIG, SHORT], ids=["context of 30", "context of 7"])
def test_shapes_of_a_window_are_known_by_its_tokens_and_frames_alone(config: DecoderConfig) -> None:
    """Those that CUDA graphs are captured with are those that streams have."""
    buffers, state = StreamBuffers(HostArrays(), config, 3, ring_frames(config, 10), MELS), FlowState()
    for stop in (8, 20, 40, 80, 120, 160, 200, 205):
        span = window_span(state.final_frames, stop, config.context_tokens, 10)
        row = window_inputs(buffers, SLOT, state, span, [0] * stop, StreamNoise(3), config, MELS)
        shapes = window_shapes(buffers, span.tokens, span.frames, config, MELS)
        assert {name: (a.shape, a.dtype) for name, a in shapes.items()} == {
            name: (a.shape, a.dtype) for name, a in row.items()
        }
        state = advance(state, span, config, final=stop > 200)


@given(st.integers(1, 60), st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(0, 20))
def test_no_frame_is_left_without_noise(context: int, chunks: list[int], held: int) -> None:
    config = DecoderConfig(context_tokens=context, flow_hold_back_frames=held, flow_fade_frames=0)
    state, stop = FlowState(), 0
    for chunk in chunks:
        stop += chunk
        span = window_span(state.final_frames, stop, context, 10)
        assert span.frames >= noise_frames(span, config) >= span.stop_frame - state.final_frames - state.held_frames
        state = advance(state, span, config, final=False)


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

    x = np.zeros((1, 4, 5), np.float32)
    mel = solve(Linear(), x, x, x, 4)
    grid = [1 - np.cos(np.pi / 2 * i / 4) for i in range(5)]
    np.testing.assert_allclose(asked, grid[:4])
    np.testing.assert_allclose(mel, sum(a * (b - a) for a, b in pairwise(grid)), rtol=1e-5)
