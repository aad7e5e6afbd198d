"""Mel-cepstral distance: how far the sound of one utterance is from the teacher's, time warped to fit."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import soxr
from numpy.typing import NDArray

from vita_audio.speech_features import mel_filters

RATE_HZ = 16_000
_WINDOW, _HOP = 400, 160  # 25 ms, 10 ms
_MELS, _COEFFICIENTS = 40, 13  # coefficients 1 .. 13: the level (0) does not count
_RMS, _LEAST_RMS = 0.1, 1e-4  # every wave is brought to one level, so that the floor means the same to all
_FLOOR = 1e-5  # mel power below this is silence to the measure
_DB = 10.0 / np.log(10.0) * np.sqrt(2.0)

Floats = NDArray[np.float64]


def cepstra(wave: NDArray[np.float32], rate_hz: int) -> Floats:
    """Mel cepstra [frames, 13] of a wave [samples]; of the logarithm of mel amplitude."""
    if rate_hz != RATE_HZ:
        wave = soxr.resample(wave, rate_hz, RATE_HZ)
    rms = np.sqrt(np.mean(wave**2)) if len(wave) else 0.0
    wave = wave * (_RMS / max(rms, _LEAST_RMS))
    padded = np.pad(wave, (_WINDOW // 2, _WINDOW // 2 + _HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2  # [frames, 201]
    log_mel = np.log(power @ mel_filters(_MELS) + _FLOOR)  # [frames, mels]
    return log_mel @ _dct()


def distance_db(first: Floats, second: Floats) -> float:
    """Mean mel-cepstral distance in dB along the best time warp of cepstra [n, 13] and [m, 13].

    Each step goes one frame on in one or in both; the mean is over the steps of the path. Infinite if one is empty.
    """
    if not len(first) or not len(second):
        return float("inf")
    square = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    local = _DB * np.sqrt(np.maximum(square, 0.0))  # [n, m]
    rows, columns = local.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    steps = np.zeros((rows + 1, columns + 1))
    total[0, 0] = 0.0
    # One anti-diagonal at a time: its cells depend on the two before it only.
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        from_i, from_j = np.array([(-1, -1, 0), (-1, 0, -1)])
        costs = total[i[:, None] + from_i, j[:, None] + from_j]  # [cells, 3]
        best = costs.argmin(1)
        total[i, j] = costs[np.arange(len(i)), best] + local[i - 1, j - 1]
        steps[i, j] = steps[i + from_i[best], j + from_j[best]] + 1
    return float(total[-1, -1] / steps[-1, -1])


@lru_cache(maxsize=1)
def _dct() -> Floats:
    """[mels, 13]: from log power to c_1 .. c_13 of log amplitude = sum of c_m cos(m w), the scale of published MCDs."""
    mel = np.arange(_MELS)[:, None]
    order = np.arange(1, _COEFFICIENTS + 1)
    return np.cos(np.pi * order * (2 * mel + 1) / (2 * _MELS)) / _MELS
