"""Mel frames of a growing token stream: flow windows with bounded context, conditioned on the mels already voiced.

The estimator attends over its whole window, so a stream can only be continued, not computed exactly in pieces
(docs/audio.md 5.3). A window starts on the block grid of the token encoder, at least `context_tokens` before the
first frame that is not final. Its condition holds the final frames; its start noise belongs to the absolute frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.rates import FRAMES_PER_TOKEN_DENOMINATOR, FRAMES_PER_TOKEN_NUMERATOR, mel_frames
from vita_audio.decoding.batching import run_grouped
from vita_audio.decoding.frames import token_of_frame
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.stream_buffers import StreamBuffers
from vita_audio.engines.arrays import Array, Arrays
from vita_audio.engines.interface import FlowEngine, SolvingFlowEngine


@dataclass(frozen=True, slots=True)
class FlowState:
    """How far the flow of a stream is. Frames are absolute; a decode makes a new state."""

    decoded_tokens: int = 0
    final_frames: int = 0  # frames [0, final_frames) will never change
    held_frames: int = 0  # made, but not final, from final_frames on
    decodes: int = 0


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """Tokens [first_token, stop_token) and mel frames [first_frame, stop_frame) of one flow window, all absolute."""

    first_token: int
    stop_token: int
    first_frame: int
    stop_frame: int

    @property
    def tokens(self) -> int:
        return self.stop_token - self.first_token

    @property
    def frames(self) -> int:
        return self.stop_frame - self.first_frame


def window_start(final_frames: int, context_tokens: int, block_tokens: int) -> int:
    """First token of the window that continues a stream with `final_frames` final frames."""
    return max(0, token_of_frame(final_frames) - context_tokens) // block_tokens * block_tokens


def window_span(final_frames: int, stop_token: int, context_tokens: int, block_tokens: int) -> WindowSpan:
    """The window that continues a stream with `final_frames` final frames up to `stop_token` tokens.

    Past the stream's start, the number of frames depends on the number of tokens alone (the first one or two frames
    of context are left out), so that windows of different streams have equal geometry wherever they are.
    """
    first_token = window_start(final_frames, context_tokens, block_tokens)
    stop_frame = mel_frames(stop_token)
    if first_token == 0:
        return WindowSpan(0, stop_token, 0, stop_frame)
    frames = mel_frames(stop_token - first_token) - 1
    return WindowSpan(first_token, stop_token, stop_frame - frames, stop_frame)


def advance(state: FlowState, span: WindowSpan, config: DecoderConfig, final: bool) -> FlowState:
    """The state after a window. Unless `final`, its last frames are held back."""
    made = span.stop_frame - state.final_frames
    keep = made if final else max(0, made - config.flow_hold_back_frames)
    return FlowState(span.stop_token, state.final_frames + keep, made - keep, state.decodes + 1)


def release_held(state: FlowState) -> FlowState:
    """End of a stream without new tokens: the held frames become final as they are."""
    return replace(state, final_frames=state.final_frames + state.held_frames, held_frames=0)


def weights_of_new(state: FlowState, span: WindowSpan, config: DecoderConfig) -> NDArray[np.float32]:
    """Share of what a window makes of each frame in what the frame becomes [F]: 0 in final frames, 1 in new ones, in
    between where held frames fade into those made again."""
    known, made = state.final_frames - span.first_frame, span.stop_frame - state.final_frames
    fade = min(config.flow_fade_frames, state.held_frames, made)
    weights = np.ones(span.frames, np.float32)
    weights[:known] = 0.0
    weights[known : known + fade] = np.arange(1, fade + 1, dtype=np.float32) / (fade + 1)
    return weights


def noise_frames(span: WindowSpan, config: DecoderConfig) -> int:
    """How many of a window's last frames are given noise, at least those that no window before it had.

    By the window's geometry alone: past a stream's start the first `context_tokens` tokens were in the window before.
    """
    if span.frames == mel_frames(span.tokens):  # a window at the start
        return span.frames
    rounding = 3  # of the frames at both ends of the context, and of the first, which is left out
    return min(span.frames, span.frames - mel_frames(config.context_tokens) + rounding)


def window_inputs(
    buffers: StreamBuffers, slot: int, state: FlowState, span: WindowSpan, codes: Sequence[int], noise: StreamNoise,
    config: DecoderConfig, mel_channels: int,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """A stream's row of the inputs of `make_mel`; codes are all audio codes of the stream so far."""
    first, stop = span.first_frame, span.stop_frame
    frames = np.arange(first, stop, dtype=np.int64)
    held, noised = max(first, stop - buffers.held_frames), stop - noise_frames(span, config)
    return {
        "tokens": np.asarray(codes[span.first_token : span.stop_token], np.int64),  # [N]
        # [F] window token of each frame
        "frame_token": frames * FRAMES_PER_TOKEN_DENOMINATOR // FRAMES_PER_TOKEN_NUMERATOR - span.first_token,
        "noise": noise.flow(noised, stop, mel_channels).T,  # [new, mels]
        "noise_place": buffers.places(slot, noised, stop),  # [new]
        "place": buffers.places(slot, first, stop),  # [F]
        "weight": weights_of_new(state, span, config),  # [F]
        "held_place": buffers.held_places(slot, state.decodes, first, stop),  # [F]
        "new_held_place": buffers.held_places(slot, state.decodes + 1, held, stop),  # [held]
    }


def window_shapes(
    buffers: StreamBuffers, tokens: int, frames: int, config: DecoderConfig, mel_channels: int
) -> dict[str, NDArray[Any]]:
    """Zeros in place of `window_inputs`, for a geometry of N tokens and F frames."""
    one = WindowSpan(0, tokens, 0, frames)
    row = window_inputs(buffers, 0, FlowState(), one, [0] * tokens, StreamNoise(0), config, mel_channels)
    return {name: np.zeros_like(values) for name, values in row.items()}


def make_mel(arrays: Arrays, flow: FlowEngine, buffers: StreamBuffers, steps: int, inputs: Mapping[str, Array]) -> None:
    """Run the flow on windows of equal geometry and take their frames into the buffers.

    Euler steps on the cosine grid t_i = 1 - cos(pi/2 * i / steps); then held frames fade into those made again.
    """
    xp, place = arrays.xp, inputs["place"]
    weight = inputs["weight"][:, :, None]
    known = buffers.mel[place]  # [B, F, mels]
    mean = condition(flow, inputs["tokens"], inputs["frame_token"])
    cond = xp.swapaxes(xp.where(weight == 0, known, xp.zeros_like(known)), 1, 2)
    buffers.noise[inputs["noise_place"]] = inputs["noise"]
    x = solve(flow, xp.swapaxes(buffers.noise[place], 1, 2), mean, cond, steps)
    mel = xp.swapaxes(x, 1, 2)
    held = buffers.held[inputs["held_place"]]
    made = xp.where(weight == 1, mel, (1 - weight) * held + weight * mel)
    buffers.mel[place] = xp.where(weight == 0, known, made)
    new_held = inputs["new_held_place"]
    buffers.held[new_held] = made[:, made.shape[1] - new_held.shape[1] :]


def solve(flow: FlowEngine, x: Array, mean: Array, cond: Array, steps: int) -> Array:
    """The mel [B, mels, F] that the flow makes of noise x; mean (of `condition`) and cond have its shape."""
    times = 1.0 - np.cos(np.pi / 2 * np.arange(steps + 1) / steps)
    if isinstance(flow, SolvingFlowEngine):
        return flow.solve(x, mean, cond, times.tolist())
    for start, stop in pairwise(times):
        x = x + float(np.float32(stop - start)) * flow.velocity(x, mean, cond, float(start))
    return x


def condition(flow: FlowEngine, tokens: Array, frame_token: Array) -> Array:
    """Mean of windows that each have a frame map of their own: tokens [B, N], frame_token [B, F] -> [B, mels, F].

    On a device one call takes all; NumPy engines are called once for windows with equal frame maps.
    """
    if not isinstance(tokens, np.ndarray):
        return flow.condition(tokens, frame_token)
    return np.stack(
        run_grouped(
            list(zip(tokens, frame_token, strict=True)),
            key=lambda window: window[1].tobytes(),
            run=lambda group: flow.condition(np.stack([row for row, _ in group]), group[0][1]),
        )
    )
