"""Exact chunked HiFT: the wave of a growing mel, equal to the one-shot vocoder (docs/audio.md 3).

The vocoder is a chain of finite filters, so a chunk needs 13 mel frames of context before it, 13 after it, and an f0
that has seen 5 more. The phase of the source and its last samples are carried from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.rates import FRAMES_PER_TOKEN_DENOMINATOR, FRAMES_PER_TOKEN_NUMERATOR, MEL_HOP_SAMPLES
from vita_audio.decoding.frames import first_frame_of
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import F0_CONTEXT_FRAMES, VOCODER_REACH_FRAMES, DecoderConfig
from vita_audio.decoding.source import Tones, frame_phases, harmonic_coefficients, harmonic_source, mixed_noise_scale
from vita_audio.decoding.stream_buffers import StreamBuffers
from vita_audio.engines.arrays import Array, Arrays
from vita_audio.engines.interface import VocoderEngine

_FULL_SCALE = 32767.0


@dataclass(frozen=True, slots=True)
class VocoderState:
    """How far the vocoder of a stream is. Frames are absolute mel frames; a chunk makes a new state."""

    voiced_frames: int = 0  # the wave of frames [0, voiced_frames) is out
    sourced_frames: int = 0  # the source of frames [0, sourced_frames) is made


@dataclass(frozen=True, slots=True)
class VocoderGeometry:
    """Sizes of a chunk, in frames: those that the f0 predictor sees, those it sees before the first that gets a source,
    those that get one, and those that the vocoder sees."""

    f0: int
    before: int
    source: int
    wave: int


@dataclass(frozen=True, slots=True)
class VocoderChunk:
    """Which absolute frames a chunk computes and voices."""

    state: VocoderState
    f0_start: int  # the frames that the f0 predictor sees end at `newest`
    source_start: int  # the frames that get a source end where the window does
    window_start: int  # the frames that the vocoder sees
    window_stop: int
    newest: int  # end of the mel
    source_stop: int  # the source of frames before this one is exact and will not be made again
    voice_stop: int  # end of the wave after this chunk

    @property
    def geometry(self) -> VocoderGeometry | None:
        """None while everything new is held back: there is nothing to compute."""
        if self.voice_stop == self.state.voiced_frames:
            return None
        return VocoderGeometry(
            f0=self.newest - self.f0_start,
            before=self.source_start - self.f0_start,
            source=self.window_stop - self.source_start,
            wave=self.window_stop - self.window_start,
        )

    def advance(self) -> VocoderState:
        """The state after the chunk."""
        return VocoderState(self.voice_stop, self.source_stop) if self.geometry else self.state

    def voiced(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Of the window's samples those that had not been voiced."""
        start, stop = (frame - self.window_start for frame in (self.state.voiced_frames, self.voice_stop))
        return samples[MEL_HOP_SAMPLES * start : MEL_HOP_SAMPLES * stop]


class Voice(NamedTuple):
    """What the source of one stream is made of: complex64 [harmonics] and the scale of its noise."""

    coefficients: NDArray[np.complex64]
    noise_scale: float

    @classmethod
    def of(cls, vocoder: VocoderEngine, noise: StreamNoise) -> Voice:
        weight = vocoder.source_weight
        return cls(harmonic_coefficients(weight, noise.phases(vocoder.harmonics)), mixed_noise_scale(weight))


def plan_chunk(state: VocoderState, newest: int, new: int, config: DecoderConfig, final: bool) -> VocoderChunk:
    """The chunk of a mel that ends at frame `newest`, the last `new` frames of it new; `final` voices them all."""
    if final:
        voice_stop = window_stop = source_stop = newest
    else:
        voice_stop = max(state.voiced_frames, newest - config.vocoder_hold_back_frames)
        window_stop = min(newest, voice_stop + VOCODER_REACH_FRAMES)
        source_stop = max(state.sourced_frames, min(window_stop, newest - F0_CONTEXT_FRAMES))
    spare = _spare_context(new)
    return VocoderChunk(
        state=state,
        f0_start=max(0, state.sourced_frames - F0_CONTEXT_FRAMES - spare),
        source_start=max(0, state.sourced_frames - spare),
        window_start=max(0, state.voiced_frames - config.vocoder_context_frames - spare),
        window_stop=window_stop,
        newest=newest,
        source_stop=source_stop,
        voice_stop=voice_stop,
    )


def _spare_context(frames: int) -> int:
    """1 for a chunk that has a frame less than its number of tokens has elsewhere in a stream, else 0.

    20 tokens have 137 or 138 frames, by their place. One more frame of context gives both the same geometry, so that
    streams at different places share an engine call.
    """
    tokens = round(frames * FRAMES_PER_TOKEN_DENOMINATOR / FRAMES_PER_TOKEN_NUMERATOR)
    return int(first_frame_of(tokens) == frames + 1)


def chunk_inputs(
    buffers: StreamBuffers, slot: int, chunk: VocoderChunk, noise: StreamNoise, voice: Voice
) -> dict[str, NDArray[Any]]:
    """A stream's row of the inputs of `make_pcm`, but for `f0_frames` [S], which is the same for all."""
    start, stop, sourced = chunk.source_start, chunk.window_stop, chunk.state.sourced_frames
    scale = np.float32(voice.noise_scale)
    samples = np.zeros((stop - start, MEL_HOP_SAMPLES), np.float32)
    drawn = noise.source(sourced, stop).reshape(-1, MEL_HOP_SAMPLES)
    np.multiply(scale, drawn, out=samples[sourced - start :])
    return {
        "f0_place": buffers.places(slot, chunk.f0_start, chunk.newest),  # [f0 frames]
        "place": buffers.places(slot, chunk.window_start, stop),  # [T]
        "source_place": buffers.places(slot, start, stop),  # [S]
        "end_place": buffers.places(slot, start + 1, stop + 1),  # [S] where the phase at a frame's end belongs
        "start_place": buffers.places(slot, sourced, sourced + 1),  # [1]
        "begun": np.array([sourced > 0]),  # [1] whether a phase is carried
        "fresh": np.arange(start, stop) >= sourced,  # [S] frames without a source
        "coefficients": voice.coefficients,  # [harmonics]
        "noise": samples,  # [S, 256]
    }


def chunk_shapes(geometry: VocoderGeometry, harmonics: int) -> dict[str, NDArray[Any]]:
    """Zeros in place of `chunk_inputs`."""
    ints, source = np.int64, geometry.source
    return {
        "f0_place": np.zeros(geometry.f0, ints),
        "place": np.zeros(geometry.wave, ints),
        "source_place": np.zeros(source, ints),
        "end_place": np.zeros(source, ints),
        "start_place": np.zeros(1, ints),
        "begun": np.zeros(1, bool),
        "fresh": np.zeros(source, bool),
        "coefficients": np.zeros(harmonics, np.complex64),
        "noise": np.zeros((source, MEL_HOP_SAMPLES), np.float32),
    }


def make_pcm(arrays: Arrays, vocoder: VocoderEngine, buffers: StreamBuffers, inputs: Mapping[str, Array]) -> Array:
    """Voice chunks of equal geometry: int16 [B, 256 T + 1], the window's samples and whether all of them are finite."""
    return to_pcm(arrays, make_wave(arrays, vocoder, buffers, inputs))


def make_wave(arrays: Arrays, vocoder: VocoderEngine, buffers: StreamBuffers, inputs: Mapping[str, Array]) -> Array:
    """The wave of the windows of chunks of equal geometry [B, 256 T]; keeps their source and its phase."""
    xp, place, fresh = arrays.xp, inputs["source_place"], inputs["fresh"]
    f0 = vocoder.f0(xp.swapaxes(buffers.mel[inputs["f0_place"]], 1, 2))[:, inputs["f0_frames"]]
    carried = buffers.phase[inputs["start_place"]]
    start = xp.where(inputs["begun"], carried, xp.zeros_like(carried))
    phases, ends = frame_phases(arrays, f0, start, fresh)
    buffers.phase[inputs["end_place"]] = ends
    tones = Tones(f0, phases, inputs["coefficients"], inputs["noise"], buffers.sample_numbers)
    made = harmonic_source(arrays, tones, vocoder.source_bias)
    buffers.source[place] = xp.where(fresh[:, :, None], made, buffers.source[place])
    source = buffers.source[inputs["place"]]
    mel = xp.swapaxes(buffers.mel[inputs["place"]], 1, 2)
    return vocoder.synthesize(mel, source.reshape(source.shape[0], source.shape[1] * MEL_HOP_SAMPLES))


def to_pcm(arrays: Arrays, wave: Array) -> Array:
    """float samples in [-1, 1] -> int16 by one constant gain, the same for every chunk: [B, samples + 1].

    The last value of a row is 1 if all of its samples are finite.
    """
    xp = arrays.xp
    finite = xp.isfinite(wave)
    levels = xp.where(finite, wave, xp.zeros_like(wave))
    levels *= _FULL_SCALE
    levels = xp.clip(xp.round(levels), -32768, 32767)
    return xp.concatenate([arrays.cast(levels, "int16"), arrays.cast(xp.all(finite, 1), "int16")[:, None]], 1)
