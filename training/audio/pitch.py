"""Fundamental frequency of speech by the YIN method: what the vocoder's f0 predictor learns.

Cumulative-mean-normalised difference (de Cheveigne and Kawahara 2002), frame by frame on the mel's grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.rates import MEL_HOP_SAMPLES, OUTPUT_SAMPLE_RATE_HZ

LOWEST_HZ, HIGHEST_HZ = 60.0, 420.0
_WINDOW = 1024  # samples compared with their shifted selves, about three periods of a low voice
_SHORTEST, _LONGEST = int(OUTPUT_SAMPLE_RATE_HZ / HIGHEST_HZ), int(OUTPUT_SAMPLE_RATE_HZ / LOWEST_HZ)
_FFT = 2048
_SURE, _VOICED = (
    0.15,
    0.35,
)  # the first dip below the one is taken; a frame whose best dip is above the other is not voiced
_QUIETEST = 0.003  # root mean square of a voiced frame
_BLOCK_FRAMES = 512


def fundamental_hz(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """f0 of each mel frame of a wave at 22.05 kHz, 0 where it is not voiced: [n] -> [ceil(n / 256)]."""
    frames = -(-len(wave) // MEL_HOP_SAMPLES)
    span = _WINDOW + _LONGEST + 1
    # A frame is centred in its 256 samples, as the mel's windows are.
    before = span // 2 - MEL_HOP_SAMPLES // 2
    padded = np.pad(np.asarray(wave, np.float64), (before, frames * MEL_HOP_SAMPLES + span - len(wave)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, span)[::MEL_HOP_SAMPLES][:frames]
    f0 = np.concatenate([_block(windows[first : first + _BLOCK_FRAMES]) for first in range(0, frames, _BLOCK_FRAMES)])
    return _smooth(f0).astype(np.float32)


def _block(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """f0 of windows [frames, span]."""
    energy = np.concatenate([np.zeros((len(windows), 1)), np.cumsum(np.square(windows), axis=1)], axis=1)
    lags = np.arange(_LONGEST + 2)
    shifted = energy[:, _WINDOW + lags[:-1]] - energy[:, lags[:-1]]  # of the window at each lag
    spectrum = np.conj(np.fft.rfft(windows[:, :_WINDOW], _FFT)) * np.fft.rfft(windows, _FFT)
    products = np.fft.irfft(spectrum, _FFT)[:, : _LONGEST + 1]
    difference = np.maximum(shifted[:, :1] + shifted - 2 * products, 0.0)  # [frames, lags]
    running = np.cumsum(difference[:, 1:], axis=1)
    normal = difference[:, 1:] * lags[1:-1] / np.maximum(running, 1e-12)  # column c is lag c + 1

    inner = normal[:, _SHORTEST - 1 : -1]  # lags _SHORTEST .. _LONGEST - 1
    left, right = normal[:, _SHORTEST - 2 : -2], normal[:, _SHORTEST:]
    dip = (inner <= left) & (inner < right)
    sure = dip & (inner < _SURE)
    best = np.where(sure.any(1), sure.argmax(1), np.where(dip, inner, np.inf).argmin(1))
    row = np.arange(len(windows))
    a, b, c = left[row, best], inner[row, best], right[row, best]
    curve = a - 2 * b + c
    offset = np.where(curve > 1e-12, 0.5 * (a - c) / np.maximum(curve, 1e-12), 0.0)  # lowest point of the parabola
    loud = np.sqrt(shifted[:, 0] / _WINDOW) > _QUIETEST
    voiced = (b < _VOICED) & dip.any(1) & loud
    return np.where(voiced, OUTPUT_SAMPLE_RATE_HZ / (best + _SHORTEST + offset.clip(-1, 1)), 0.0)


def _smooth(f0: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of five frames where most are voiced: single octave jumps and single lost frames go."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(f0, 2), 5)  # [frames, 5]
    voiced = (around > 0).sum(1) >= 3
    median = np.nan_to_num(np.nanmedian(np.where(around > 0, around, np.nan)[voiced], axis=1))
    smooth = np.zeros_like(f0)
    smooth[voiced] = median
    return smooth
