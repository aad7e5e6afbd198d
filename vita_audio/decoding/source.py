"""The harmonic source of the HiFT vocoder in numpy, with the phase carried in closed form (docs/audio.md 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.rates import MEL_HOP_SAMPLES, OUTPUT_SAMPLE_RATE_HZ
from vita_audio.engines.interface import Floats

_SINE_AMPLITUDE = 0.1
_VOICED_NOISE, _UNVOICED_NOISE = 0.003, 0.1 / 3
_VOICED_ABOVE_HZ = 10.0
_SAMPLE_NUMBER = np.arange(1, MEL_HOP_SAMPLES + 1, dtype=np.float32)
_FRAMES_IN_CACHE = 16  # 32 kB of complex samples


def mixed_noise_scale(weight: Floats) -> float:
    """Scale that turns one N(0, 1) value a sample into the weighted sum of one N(0, 1) value per harmonic."""
    return float(np.linalg.norm(weight))


def frame_phases(f0: Floats, start: float) -> NDArray[np.float64]:
    """Phase of the fundamental at the start of each frame, in cycles modulo 1.

    f0 [frames] in Hz is constant within a frame, so a sum at frame rate is the sum at sample rate.
    start is the phase before frame 0 -> [frames + 1]; the last one is where the next frame begins.
    """
    cycles = np.empty(len(f0) + 1)  # float64: the sum runs over minutes
    cycles[0] = start
    np.cumsum(f0.astype(np.float64) * (MEL_HOP_SAMPLES / OUTPUT_SAMPLE_RATE_HZ), out=cycles[1:])
    cycles[1:] += start
    return cycles - np.floor(cycles)


def harmonic_source(
    f0: Floats, phases: NDArray[np.float64], offsets: NDArray[np.float64], noise: Floats, weight: Floats, bias: float
) -> Floats:
    """Excitation of the vocoder: tanh(w . (voiced sines + noise) + b).

    Args:
        f0: [frames] in Hz.
        phases: [frames] phase of the fundamental at each frame's start in cycles (`frame_phases`).
        offsets: [harmonics] phase offsets in radians.
        noise: [256 * frames] N(0, 1) noise per harmonic already summed with `weight`.
        weight, bias: `m_source.l_linear`, [harmonics] and a number.

    Returns:
        [256 * frames] float32.
    """
    # Harmonic h is the h-th power of the fundamental, so their weighted sum is a polynomial in it (Horner's rule).
    coefficients = (_SINE_AMPLITUDE * weight * np.exp(1j * offsets)).astype(np.complex64)
    voiced = (f0 > _VOICED_ABOVE_HZ).astype(np.float32)[:, None]
    level = _UNVOICED_NOISE + (_VOICED_NOISE - _UNVOICED_NOISE) * voiced
    start = (2 * np.pi * phases).astype(np.float32)[:, None]
    step = (2 * np.pi / OUTPUT_SAMPLE_RATE_HZ * f0)[:, None]  # radians a sample
    mixed = noise.reshape(-1, MEL_HOP_SAMPLES) * level  # [frames, 256]
    # A frame turns by a few cycles only, so float32 does once the phase at its start is known modulo 1.
    for first in range(0, len(f0), _FRAMES_IN_CACHE):
        part = slice(first, first + _FRAMES_IN_CACHE)
        angle = start[part] + step[part] * _SAMPLE_NUMBER
        fundamental = np.empty(angle.shape, np.complex64)
        np.cos(angle, out=fundamental.real)
        np.sin(angle, out=fundamental.imag)
        waves = coefficients[-1] * fundamental
        for coefficient in coefficients[-2::-1]:
            waves += coefficient
            waves *= fundamental
        mixed[part] += waves.imag * voiced[part]
    mixed += np.float32(bias)
    return np.tanh(mixed, out=mixed).reshape(-1)
