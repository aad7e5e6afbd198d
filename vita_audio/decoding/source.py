"""The harmonic source of the HiFT vocoder, with the phase carried in closed form (docs/audio.md 3).

The fundamental's phase is a sum over frames in float64; within a frame it is linear, so float32 does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vita_audio.contract.rates import MEL_HOP_SAMPLES, OUTPUT_SAMPLE_RATE_HZ
from vita_audio.engines.arrays import Array, Arrays
from vita_audio.engines.interface import Floats

_SINE_AMPLITUDE = 0.1
_VOICED_NOISE, _UNVOICED_NOISE = 0.003, 0.1 / 3
_VOICED_ABOVE_HZ = 10.0


class Tones(NamedTuple):
    """What makes the samples of frames that have an f0.

    Attributes:
        f0: [B, frames] in Hz.
        phases: [B, frames] phase of the fundamental at each frame's start, in cycles (`frame_phases`).
        coefficients: [B, harmonics] complex64 (`harmonic_coefficients`).
        noise: [B, frames, 256] N(0, 1) noise per harmonic already summed with their weights.
        sample_numbers: [256] float32, 1 to 256.
    """

    f0: Array
    phases: Array
    coefficients: Array
    noise: Array
    sample_numbers: Array


def mixed_noise_scale(weight: Floats) -> float:
    """Scale that turns one N(0, 1) value a sample into the weighted sum of one N(0, 1) value per harmonic."""
    return float(np.linalg.norm(weight))


def harmonic_coefficients(weight: Floats, offsets: np.ndarray) -> np.ndarray:
    """Amplitude and phase of each harmonic in the source, complex64.

    weight: `m_source.l_linear.weight` [harmonics]; offsets: [harmonics] in radians.
    """
    return (_SINE_AMPLITUDE * weight * np.exp(1j * offsets)).astype(np.complex64)


def frame_phases(arrays: Arrays, f0: Array, start: Array, begun: Array) -> tuple[Array, Array]:
    """Phase of the fundamental at the start and at the end of each frame, in cycles modulo 1: both [B, frames] float64.

    Args:
        f0: [B, frames] in Hz, constant within a frame: so a sum at frame rate is the sum at sample rate.
        start: [B, 1] phase before the first frame that counts.
        begun: [B, frames] whether a frame counts; frames before the first one that does have the phase `start`.
    """
    xp = arrays.xp
    turns = arrays.cast(f0, "float64") * (MEL_HOP_SAMPLES / OUTPUT_SAMPLE_RATE_HZ)  # the sum runs over minutes
    ends = xp.cumsum(xp.where(begun, turns, xp.zeros_like(turns)), 1) + start
    starts = xp.concatenate([start, ends[:, :-1]], 1)
    return starts - xp.floor(starts), ends - xp.floor(ends)


def harmonic_source(arrays: Arrays, tones: Tones, bias: float) -> Array:
    """Excitation of the vocoder, tanh(w . (voiced sines + noise) + b): [B, frames, 256] float32.

    bias: `m_source.l_linear.bias`.
    """
    # Harmonic h is the h-th power of the fundamental, so their weighted sum is a polynomial in it (Horner's rule).
    f0, coefficients = tones.f0, tones.coefficients[:, :, None, None]
    voiced = arrays.cast(f0 > _VOICED_ABOVE_HZ, "float32")[:, :, None]
    level = _UNVOICED_NOISE + (_VOICED_NOISE - _UNVOICED_NOISE) * voiced
    start = arrays.cast(2 * np.pi * tones.phases, "float32")[:, :, None]
    step = (2 * np.pi / OUTPUT_SAMPLE_RATE_HZ * f0)[:, :, None]  # radians a sample
    mixed = tones.noise * level
    frames = f0.shape[1]
    for first in range(0, frames, arrays.rows_at_a_time or frames):
        part = slice(first, first + (arrays.rows_at_a_time or frames))
        fundamental = arrays.phasor(start[:, part] + step[:, part] * tones.sample_numbers)
        waves = coefficients[:, -1] * fundamental
        for harmonic in range(coefficients.shape[1] - 2, -1, -1):
            waves += coefficients[:, harmonic]
            waves *= fundamental
        mixed[:, part] += waves.imag * voiced[:, part]
    mixed += bias
    return arrays.xp.tanh(mixed)
