"""Mel frames of a growing token stream: flow windows with bounded context, conditioned on the mels already voiced.

The estimator attends over its whole window, so a stream can only be continued, not computed exactly in pieces
(docs/audio.md 5.3). A window starts on the block grid of the token encoder, at least `context_tokens` before the
first frame that is not final. Its condition holds the final frames; its start noise belongs to the absolute frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vita_audio.contract.rates import FRAMES_PER_TOKEN_DENOMINATOR, FRAMES_PER_TOKEN_NUMERATOR, mel_frames
from vita_audio.decoding.batching import run_grouped
from vita_audio.decoding.frames import first_frame_of, token_of_frame
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.interface import Floats, FlowEngine, Ints, SolvingFlowEngine


@dataclass(frozen=True, slots=True)
class FlowState:
    """What a stream's next window needs. Frames are absolute; a decode makes a new state."""

    decoded_tokens: int
    final_frames: int  # frames [0, final_frames) will never change
    context: Floats  # [mels, frames] final frames that end at final_frames
    held: Floats  # [mels, frames] made, but not final, from final_frames on

    @classmethod
    def empty(cls, mel_channels: int) -> FlowState:
        nothing = np.zeros((mel_channels, 0), np.float32)
        return cls(decoded_tokens=0, final_frames=0, context=nothing, held=nothing)


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """Tokens [first_token, stop_token) and mel frames [first_frame, stop_frame) of one flow window, all absolute."""

    first_token: int
    stop_token: int
    first_frame: int
    stop_frame: int

    @property
    def frames(self) -> int:
        return self.stop_frame - self.first_frame


@dataclass(frozen=True, slots=True)
class FlowWindow:
    """The inputs of the flow engine for one stream's window of N tokens and F frames."""

    tokens: Ints  # [N]
    frame_token: Ints  # [F] window token of each frame
    noise: Floats  # [mels, F] the flow's start
    cond: Floats  # [mels, F] final mels, then zeros


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


def make_window(state: FlowState, span: WindowSpan, codes: Sequence[int], noise: StreamNoise) -> FlowWindow:
    """Engine inputs of `span`; codes are all audio codes of the stream so far."""
    mel_channels = len(state.context)
    frames = np.arange(span.first_frame, span.stop_frame, dtype=np.int64)
    known = state.final_frames - span.first_frame
    cond = np.zeros((mel_channels, span.frames), np.float32)
    if known:
        cond[:, :known] = state.context[:, -known:]
    return FlowWindow(
        tokens=np.asarray(codes[span.first_token : span.stop_token], np.int64),
        frame_token=frames * FRAMES_PER_TOKEN_DENOMINATOR // FRAMES_PER_TOKEN_NUMERATOR - span.first_token,
        noise=noise.flow(span.first_frame, span.stop_frame, mel_channels),
        cond=cond,
    )


def run_windows(flow: FlowEngine, windows: Sequence[FlowWindow], steps: int) -> list[Floats]:
    """Mel [mels, F] of each window: Euler steps on the cosine grid t_i = 1 - cos(pi/2 * i / steps).

    Windows with equally many frames share the estimator calls, those with equal frame maps the token encoder's too. An
    engine that takes all steps itself is asked once.
    """
    mu = run_grouped(
        windows,
        key=lambda window: (len(window.tokens), window.frame_token.tobytes()),
        run=lambda group: flow.condition(np.stack([window.tokens for window in group]), group[0].frame_token),
    )
    times = 1.0 - np.cos(np.pi / 2 * np.arange(steps + 1) / steps)

    def integrate(group: list[tuple[FlowWindow, Floats]]) -> Floats:
        x = np.stack([window.noise for window, _ in group])  # [windows, mels, F]
        cond = np.stack([window.cond for window, _ in group])
        means = np.stack([mean for _, mean in group])
        if isinstance(flow, SolvingFlowEngine):
            return flow.solve(x, means, cond, times.tolist())
        for start, stop in pairwise(times):
            x = x + np.float32(stop - start) * flow.velocity(x, means, cond, float(start))
        return x

    return run_grouped(list(zip(windows, mu, strict=True)), key=lambda item: item[0].cond.shape[1], run=integrate)


def advance(
    state: FlowState, span: WindowSpan, mel: Floats, config: DecoderConfig, block_tokens: int, final: bool
) -> tuple[FlowState, Floats]:
    """Take a window's mel [mels, F] into the stream: the new state and the frames [mels, k] that became final.

    Held frames fade into those made again; unless `final`, the last frames are held back in turn.
    """
    made = mel[:, state.final_frames - span.first_frame :].copy()
    fade = min(config.flow_fade_frames, state.held.shape[1], made.shape[1])
    if fade:
        weight = np.arange(1, fade + 1, dtype=np.float32) / (fade + 1)
        made[:, :fade] = (1 - weight) * state.held[:, :fade] + weight * made[:, :fade]
    keep = made.shape[1] if final else max(0, made.shape[1] - config.flow_hold_back_frames)
    voiced, held = made[:, :keep], made[:, keep:]
    final_frames = state.final_frames + keep
    oldest = first_frame_of(window_start(final_frames, config.context_tokens, block_tokens))
    context = np.concatenate([state.context, voiced], axis=1)
    context = context[:, max(0, context.shape[1] - (final_frames - oldest)) :]
    return FlowState(span.stop_token, final_frames, context, held), voiced


def release_held(state: FlowState) -> tuple[FlowState, Floats]:
    """End of a stream without new tokens: the held frames become final as they are."""
    final_frames = state.final_frames + state.held.shape[1]
    return FlowState(state.decoded_tokens, final_frames, state.context, state.held[:, :0]), state.held
