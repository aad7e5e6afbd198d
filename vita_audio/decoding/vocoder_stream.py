"""Exact chunked HiFT: the wave of a growing mel, equal to the one-shot vocoder (docs/audio.md 3).

The vocoder is a chain of finite filters, so a chunk needs 13 mel frames of context before it, 13 after it, and an f0
that has seen 5 more. The phase of the source and its last samples are carried from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vita_audio.contract.rates import FRAMES_PER_TOKEN_DENOMINATOR, FRAMES_PER_TOKEN_NUMERATOR, MEL_HOP_SAMPLES
from vita_audio.decoding.batching import run_grouped
from vita_audio.decoding.frames import first_frame_of
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import F0_CONTEXT_FRAMES, VOCODER_REACH_FRAMES, DecoderConfig
from vita_audio.decoding.source import frame_phases, harmonic_source, mixed_noise_scale
from vita_audio.engines.interface import Floats, VocoderEngine


@dataclass(frozen=True, slots=True)
class VocoderState:
    """What a stream's next chunk needs. Frames are absolute mel frames; a chunk makes a new state."""

    mel: Floats  # [mels, frames] the frames [first_frame, first_frame + frames)
    first_frame: int
    voiced_frames: int  # the wave of frames [0, voiced_frames) is out
    source: Floats  # [256 * frames] source of the frames [first_frame, sourced_frames)
    sourced_frames: int
    phase: float  # of the fundamental where frame `sourced_frames` begins, in cycles

    @classmethod
    def empty(cls, mel_channels: int) -> VocoderState:
        return cls(np.zeros((mel_channels, 0), np.float32), 0, 0, np.zeros(0, np.float32), 0, 0.0)


@dataclass(frozen=True, slots=True)
class MelChunk:
    """New mel frames [mels, frames] of one stream; `final` voices everything up to the end."""

    state: VocoderState
    mel: Floats
    noise: StreamNoise
    final: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which absolute frames a chunk computes and voices."""

    state: VocoderState
    noise: StreamNoise
    mel: Floats  # [mels, frames] from state.first_frame to the newest frame
    newest: int  # end of the mel
    voice_stop: int  # end of the wave after this chunk
    window_start: int  # the frames that the vocoder sees
    window_stop: int
    f0_start: int  # the frames that the f0 predictor sees end at `newest`
    source_stop: int  # the source of frames before this one is exact and will not be made again

    def frames(self, first: int, stop: int) -> Floats:
        return self.mel[:, first - self.state.first_frame : stop - self.state.first_frame]


def run_chunks(
    vocoder: VocoderEngine, chunks: Sequence[MelChunk], config: DecoderConfig
) -> list[tuple[VocoderState, Floats]]:
    """New state and wave [256 * frames] of each chunk; chunks of equal geometry share the engine calls.

    A wave is empty while everything new is held back.
    """
    plans = [_plan(chunk, config) for chunk in chunks]
    active = [plan for plan in plans if plan.voice_stop > plan.state.voiced_frames]
    f0_mels = [plan.frames(plan.f0_start, plan.newest) for plan in active]
    f0s = run_grouped(f0_mels, key=lambda mel: mel.shape[1], run=lambda group: vocoder.f0(np.stack(group)))
    sourced = [_source(vocoder, plan, f0) for plan, f0 in zip(active, f0s, strict=True)]
    mels = [plan.frames(plan.window_start, plan.window_stop) for plan in active]
    windows = [
        (mel, source[MEL_HOP_SAMPLES * (plan.window_start - plan.state.first_frame) :])
        for plan, mel, (source, _) in zip(active, mels, sourced, strict=True)
    ]
    waves = run_grouped(
        windows,
        key=lambda window: window[0].shape[1],
        run=lambda group: vocoder.synthesize(
            np.stack([mel for mel, _ in group]), np.stack([source for _, source in group])
        ),
    )
    voiced = iter(zip(sourced, waves, strict=True))
    results = []
    for plan in plans:
        if plan.voice_stop > plan.state.voiced_frames:
            (source, phase), wave = next(voiced)
            results.append(_advance(plan, source, phase, wave, config))
        else:
            results.append((_waiting(plan), np.zeros(0, np.float32)))
    return results


def _plan(chunk: MelChunk, config: DecoderConfig) -> _Plan:
    state = chunk.state
    mel = np.concatenate([state.mel, chunk.mel], axis=1)
    newest = state.first_frame + mel.shape[1]
    if chunk.final:
        voice_stop = window_stop = source_stop = newest
    else:
        voice_stop = max(state.voiced_frames, newest - config.vocoder_hold_back_frames)
        window_stop = min(newest, voice_stop + VOCODER_REACH_FRAMES)
        source_stop = max(state.sourced_frames, min(window_stop, newest - F0_CONTEXT_FRAMES))
    spare = _spare_context(chunk.mel.shape[1])
    return _Plan(
        state=state,
        noise=chunk.noise,
        mel=mel,
        newest=newest,
        voice_stop=voice_stop,
        window_start=max(state.first_frame, state.voiced_frames - config.vocoder_context_frames - spare),
        window_stop=window_stop,
        f0_start=max(state.first_frame, state.sourced_frames - F0_CONTEXT_FRAMES - spare),
        source_stop=source_stop,
    )


def _spare_context(frames: int) -> int:
    """1 for a chunk that has a frame less than its number of tokens has elsewhere in a stream, else 0.

    20 tokens have 137 or 138 frames, by their place. One more frame of context gives both the same geometry, so that
    streams at different places share an engine call.
    """
    tokens = round(frames * FRAMES_PER_TOKEN_DENOMINATOR / FRAMES_PER_TOKEN_NUMERATOR)
    return int(first_frame_of(tokens) == frames + 1)


def _source(vocoder: VocoderEngine, plan: _Plan, f0: Floats) -> tuple[Floats, float]:
    """Source from the state's first frame to the window's end, and the phase where `source_stop` begins."""
    state = plan.state
    f0 = f0[state.sourced_frames - plan.f0_start : plan.window_stop - plan.f0_start]
    phases = frame_phases(f0, state.phase)
    scale = np.float32(mixed_noise_scale(vocoder.source_weight))
    noise = scale * plan.noise.source(state.sourced_frames, plan.window_stop)
    offsets = plan.noise.phases(vocoder.harmonics)
    new = harmonic_source(f0, phases[:-1], offsets, noise, vocoder.source_weight, vocoder.source_bias)
    return np.concatenate([state.source, new]), float(phases[plan.source_stop - state.sourced_frames])


def _advance(
    plan: _Plan, source: Floats, phase: float, wave: Floats, config: DecoderConfig
) -> tuple[VocoderState, Floats]:
    """The state after a chunk, and of its window's wave the part that had not been voiced."""
    state = plan.state
    start, stop = (MEL_HOP_SAMPLES * (frame - plan.window_start) for frame in (state.voiced_frames, plan.voice_stop))
    # One frame more than the context: the next chunk may want it spare.
    first = max(state.first_frame, plan.voice_stop - config.vocoder_context_frames - 1)
    kept = source[
        MEL_HOP_SAMPLES * (first - state.first_frame) : MEL_HOP_SAMPLES * (plan.source_stop - state.first_frame)
    ]
    mel = plan.frames(first, plan.newest).copy()
    return VocoderState(mel, first, plan.voice_stop, kept.copy(), plan.source_stop, phase), wave[start:stop]


def _waiting(plan: _Plan) -> VocoderState:
    """Everything is held back: only the mel grows."""
    state = plan.state
    return VocoderState(
        plan.mel, state.first_frame, state.voiced_frames, state.source, state.sourced_frames, state.phase
    )
