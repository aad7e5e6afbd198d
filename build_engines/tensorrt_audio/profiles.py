"""The shapes that the streaming decoder asks its engines for, found by running its schedule; profiles made from them.

Nothing about the schedule is written down twice: a `StreamingDecoder` runs over engines that only note what they are
asked (no network, no sound), one stream through its steady state and an end after every decode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from vita_audio.contract.rates import MEL_HOP_SAMPLES
from vita_audio.decoding.decoder import StreamingDecoder, StreamState
from vita_audio.decoding.schedule import DecoderConfig, next_decode
from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.tensorrt_audio.plan import BATCH, Geometry, Profile

#: Frames and tokens meet again after this many tokens (441 frames): positions of a stream repeat from there.
FRAME_PERIOD_TOKENS = 64

Noted = TypeVar("Noted", int, tuple[int, int])


@dataclass(slots=True)
class NotingEngines:
    """A flow and a vocoder that note the geometries they are asked for."""

    mel_channels: int
    block_tokens: int
    harmonics: int = 1
    source_weight: Floats = field(default_factory=lambda: np.ones(1, np.float32))
    source_bias: float = 0.0
    windows: set[tuple[int, int]] = field(default_factory=set)  # tokens, frames
    velocities: set[int] = field(default_factory=set)  # frames, as those below
    f0s: set[int] = field(default_factory=set)
    waves: set[int] = field(default_factory=set)

    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        self.windows.add((tokens.shape[1], len(frame_token)))
        return np.zeros((len(tokens), self.mel_channels, len(frame_token)), np.float32)

    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        self.velocities.add(x.shape[2])
        return np.zeros_like(x)

    def f0(self, mel: Floats) -> Floats:
        self.f0s.add(mel.shape[2])
        return np.zeros((len(mel), mel.shape[2]), np.float32)

    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        self.waves.add(mel.shape[2])
        return np.zeros_like(source)


@dataclass(frozen=True, slots=True)
class Geometries:
    """Shapes of one engine call each, smallest first: those of running streams, and all with the ends of streams."""

    running: tuple[Geometry, ...]
    every: tuple[Geometry, ...]


@dataclass(frozen=True, slots=True)
class DecoderGeometries:
    """What each engine of the audio decoder is asked for."""

    condition: Geometries  # tokens, frames
    velocity: Geometries  # frames
    f0: Geometries  # frames
    vocoder: Geometries  # frames, samples


def decoder_geometries(config: DecoderConfig, mel_channels: int, block_tokens: int) -> DecoderGeometries:
    """Run the schedule until it repeats; end a copy of the stream after each decode, at once and as late as can be."""
    running, ends = (NotingEngines(mel_channels, block_tokens) for _ in range(2))
    config = replace(config, flow_steps=1)
    decoder, ender = StreamingDecoder(running, running, config), StreamingDecoder(ends, ends, config)
    state, decoded = decoder.init(0), 0
    steady = config.context_tokens + sum(config.chunk_tokens) + config.chunk_tokens[-1]
    while decoded < steady + FRAME_PERIOD_TOKENS:
        due = next_decode(config, decoded)
        for more in {0, 1, due - decoded - 1}:
            _end(ender, state, more)
        decoder.push(state, [0] * (due - decoded))
        decoded = due
    return DecoderGeometries(
        condition=_geometries(running.windows, ends.windows, _window),
        velocity=_geometries(running.velocities, ends.velocities, _frames),
        f0=_geometries(running.f0s, ends.f0s, _frames),
        vocoder=_geometries(running.waves, ends.waves, _frames_and_samples),
    )


def profiles(geometries: Geometries, max_batch: int) -> tuple[Profile, ...]:
    """One profile for the first and one for the largest geometry of running streams, and one for every geometry.

    The first decides the time to first audio, the largest is the steady state: TensorRT picks kernels for exactly
    these lengths. Ends of streams come in any length and share the last profile.
    """
    first, steady = geometries.running[0], geometries.running[-1]
    exact = [first] if first == steady else [first, steady]
    batch = (1, 1, max_batch)
    special: list[Profile] = [
        {BATCH: batch, **{name: (length, length, length) for name, length in geometry.items()}} for geometry in exact
    ]
    general: Profile = {BATCH: batch}
    for name, likely in steady.items():
        lengths = [geometry[name] for geometry in geometries.every]
        general[name] = (min(lengths), likely, max(lengths))
    return (*special, general)


def speech_profiles(max_frames: int) -> tuple[Profile, ...]:
    """Pieces of speech [2, max_frames] frames of 10 ms, one at a time: a short question, and anything."""
    short = min(800, max_frames)
    return (
        {BATCH: (1, 1, 1), "frames": (2, min(400, short), short)},
        {BATCH: (1, 1, 1), "frames": (2, max_frames // 4 * 2, max_frames)},
    )


def _end(decoder: StreamingDecoder, state: StreamState, more_tokens: int) -> None:
    """End a copy of a stream after so many further tokens."""
    copy = replace(state, codes=[*state.codes, *[0] * more_tokens], ended=True)
    while decoder.due(copy) is not None:
        decoder.step([copy])


def _geometries(running: set[Noted], ends: set[Noted], named: Callable[[Noted], Geometry]) -> Geometries:
    return Geometries(tuple(map(named, sorted(running))), tuple(map(named, sorted(running | ends))))


def _window(window: tuple[int, int]) -> Geometry:
    return {"tokens": window[0], "frames": window[1]}


def _frames(frames: int) -> Geometry:
    return {"frames": frames}


def _frames_and_samples(frames: int) -> Geometry:
    return {"frames": frames, "samples": MEL_HOP_SAMPLES * frames}
