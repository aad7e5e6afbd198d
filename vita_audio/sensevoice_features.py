"""16 kHz speech -> features of the SenseVoice encoder, of the Plus variant, in numpy (docs/plus.md).

Kaldi's filter bank as the released front end has it: log energies of 80 mel bands every 10 ms, seven frames stacked
into one row every 60 ms, then shift and scale. The encoder adds four rows of its own, so `slot_count` rows of
embeddings stand in the prompt.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.engines.interface import Floats, SpeechEncoderEngine

WINDOW, HOP = 400, 160  # samples
MEL_BINS, STACKED, STRIDE = 80, 7, 6  # bands of a frame, frames of a row, frames from row to row
QUERIES = 4  # rows that the encoder puts before the features
LOWEST_MEL_HZ, PREEMPHASIS = 20.0, 0.97
FULL_SCALE = 32768  # the filter bank's unit is a step of 16-bit sound
#: Noise, in 16-bit steps, that keeps digital silence from being a sound that the released model has never seen: it was
#: trained with noise of this strength on everything. Without it a silent band is -15.9, with it about +4.
DITHER = 1.0
_BLOCK_FRAMES = 400  # frames transformed at once, so that memory is bounded
_NOISE_SAMPLES = 1 << 16  # then the noise repeats


def frame_count(samples: int) -> int:
    """Whole windows of a clip; a clip shorter than one is a window of its own length."""
    return 1 + max(0, samples - WINDOW) // HOP


def slot_count(samples: int) -> int:
    """Places of a clip of `samples` (at 16 kHz, at least 1) in the prompt: rows of features, and the queries."""
    return -(-frame_count(samples) // STRIDE) + QUERIES


def most_slots() -> int:
    """Places of the longest clip that a request may have."""
    return slot_count(int(MAX_AUDIO_SECONDS * INPUT_SAMPLE_RATE_HZ))


def speech_embeddings(engine: SpeechEncoderEngine, samples: Floats, dither: float = DITHER) -> Floats:
    """Prompt embeddings of mono speech [n] at 16 kHz, n at least 1: float32 [slot_count(n), embedding_size]."""
    rows = stacked_frames(log_mel(samples, dither))
    return engine.embeddings(normalized(rows, engine.feature_shift, engine.feature_scale))


def normalized(rows: Floats, shift: Floats, scale: Floats) -> Floats:
    """CMVN over stacked rows [rows, 560], with the tables of `am.mvn`."""
    return (rows + shift) * scale


def stacked_frames(frames: Floats) -> Floats:
    """[T, bands] -> [ceil(T / 6), 7 * bands]: row i is frames 6i - 3 to 6i + 3, the ends repeat the outermost frame."""
    rows = -(-len(frames) // STRIDE)
    index = np.arange(rows)[:, None] * STRIDE + np.arange(STACKED) - STACKED // 2
    return frames[index.clip(0, len(frames) - 1)].reshape(rows, -1)


def log_mel(samples: Floats, dither: float = DITHER) -> Floats:
    """Log energies of mono speech [n] at 16 kHz in [-1, 1]: float32 [frame_count(n), 80].

    Args:
        samples: at least one. Fewer than 400 are one window, whose shorter transform leaves some bands empty (-15.9).
        dither: noise in 16-bit steps. It is the same for every clip and depends on the place in the clip alone, so
            features repeat, and those of a clip that goes on stay as they were.

    Raises:
        ValueError: there are no samples.
    """
    if not len(samples):
        raise ValueError("samples are empty, must be at least 1; leave speech without a sample out of the prompt")
    x = np.asarray(samples, np.float64) * FULL_SCALE
    if dither:
        x = x + dither * np.resize(_noise(), len(x))
    if len(x) < 2:  # of one sample nothing is left without its mean
        x = np.pad(x, (0, 2 - len(x)))
    window, count = min(WINDOW, len(x)), frame_count(len(x))
    windows = np.lib.stride_tricks.sliding_window_view(x, window)[::HOP]  # [frames, window], a view
    energies = np.empty((count, MEL_BINS), np.float32)
    for start in range(0, count, _BLOCK_FRAMES):
        energies[start : start + _BLOCK_FRAMES] = _log_bands(windows[start : min(start + _BLOCK_FRAMES, count)])
    return energies


def _log_bands(windows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the mel energies of windows [frames, window], which are not changed: [frames, 80]."""
    window = windows.shape[1]
    fft = 1 << (window - 1).bit_length()
    centred = windows - windows.mean(1, keepdims=True)
    before = np.concatenate((centred[:, :1], centred[:, :-1]), 1)  # the first sample stands before itself
    spectrum = np.fft.rfft((centred - PREEMPHASIS * before) * np.hamming(window), fft)
    power = np.square(spectrum.real) + np.square(spectrum.imag)  # [frames, fft / 2 + 1]
    return np.log(np.maximum(power @ _mel_filters(fft), np.finfo(np.float32).eps))


@lru_cache(maxsize=4)
def _mel_filters(fft: int) -> NDArray[np.float64]:
    """Triangles of equal height, linear in mel, from 20 Hz to 8 kHz: [fft / 2 + 1, 80]."""
    edges = np.linspace(_mel(LOWEST_MEL_HZ), _mel(INPUT_SAMPLE_RATE_HZ / 2), MEL_BINS + 2)
    at = _mel(np.arange(fft // 2 + 1) * INPUT_SAMPLE_RATE_HZ / fft)[:, None]
    width = np.diff(edges)
    filters = np.maximum(0.0, np.minimum((at - edges[:-2]) / width[:-1], (edges[2:] - at) / width[1:]))
    filters[-1] = 0.0  # the released filter bank leaves out the bin of the highest frequency
    return filters


def _mel(hz: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127.0 * np.log1p(np.asarray(hz) / 700.0)


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.float64]:
    """N(0, 1). This generator draws the same numbers in every version of numpy."""
    return np.random.RandomState(0).standard_normal(_NOISE_SAMPLES)
