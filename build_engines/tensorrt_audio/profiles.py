"""The shapes that the streaming decoder asks each TensorRT engine for, and profiles made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vita_audio.contract.rates import MEL_HOP_SAMPLES
from vita_audio.decoding.geometries import all_geometries
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.tensorrt_audio.plan import BATCH, Geometry, Profile, batch_buckets

Noted = TypeVar("Noted", int, tuple[int, int])


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


def decoder_geometries(config: DecoderConfig, block_tokens: int) -> DecoderGeometries:
    """What the decoder's schedule makes of streams, up to any end."""
    made = all_geometries(config, block_tokens)
    running, ends = made.running, made.ends
    return DecoderGeometries(
        condition=_geometries(set(running.windows), set(ends.windows), _window),
        velocity=_geometries({f for _, f in running.windows}, {f for _, f in ends.windows}, _frames),
        f0=_geometries({c.f0 for c in running.chunks}, {c.f0 for c in ends.chunks}, _frames),
        vocoder=_geometries({c.wave for c in running.chunks}, {c.wave for c in ends.chunks}, _frames_and_samples),
    )


def profiles(geometries: Geometries, max_batch: int) -> tuple[Profile, ...]:
    """One profile for the first and one for the largest geometry of running streams, and one for every geometry.

    The first decides the time to first audio, the largest is the steady state: TensorRT picks kernels for exactly
    these lengths. Ends of streams come in any length and share the last profile.
    """
    first, steady = geometries.running[0], geometries.running[-1]
    exact = [first] if first == steady else [first, steady]
    batch = (1, 1, batch_buckets(max_batch)[-1])
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


def clip_profiles(max_rows: int) -> tuple[Profile, ...]:
    """Clips of [1, max_rows] rows of 60 ms for SenseVoice, one at a time: a short question, and anything."""
    short = min(128, max_rows)
    return (
        {BATCH: (1, 1, 1), "rows": (1, min(64, short), short)},
        {BATCH: (1, 1, 1), "rows": (1, -(-max_rows // 4), max_rows)},
    )


def _geometries(running: set[Noted], ends: set[Noted], named: Callable[[Noted], Geometry]) -> Geometries:
    return Geometries(tuple(map(named, sorted(running))), tuple(map(named, sorted(running | ends))))


def _window(window: tuple[int, int]) -> Geometry:
    return {"tokens": window[0], "frames": window[1]}


def _frames(frames: int) -> Geometry:
    return {"frames": frames}


def _frames_and_samples(frames: int) -> Geometry:
    return {"frames": frames, "samples": MEL_HOP_SAMPLES * frames}
