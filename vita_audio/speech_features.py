"""16 kHz speech -> log-mel features for the speech tokenizer, piece by piece, in numpy (docs/audio.md 1).

Equals the released feature extractor (Whisper's, with padding to whole tokens) for any number of mel bands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soxr
from numpy.typing import NDArray

from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.engines.interface import BatchedSpeechTokenizerEngine, Floats, Ints, SpeechTokenizerEngine
from vita_audio.engines.recently_used import RecentlyUsed

N_FFT, HOP = 400, 160  # samples
TOKEN_SAMPLES = 1280  # 80 ms
BLOCK_TOKENS = 50  # 4 s: the tokenizer attends within a block and to those before it
PIECE_SAMPLES = 30 * INPUT_SAMPLE_RATE_HZ  # pieces are tokenised independently
MAX_MEL_HZ = 8000.0
_BLOCK_FRAMES = 400  # frames transformed at once: memory is bounded, and blocks of speech that goes on stay the same

#: Features that were made before, by what they were made of.
FeatureBlocks = RecentlyUsed[Floats]


@dataclass(frozen=True, slots=True)
class SpeechPiece:
    """Features of at most 30 s: [mels, frames], frames a whole number of tokens; `valid_frames` hold speech."""

    features: Floats
    valid_frames: int

    @property
    def tokens(self) -> int:
        return -(-self.valid_frames * HOP // TOKEN_SAMPLES)


def token_count(samples: int) -> int:
    """Audio tokens of `samples` samples at 16 kHz: ceil(samples / 1280); pieces end on whole tokens."""
    return -(-samples // TOKEN_SAMPLES)


def final_tokens(tokens: int) -> int:
    """How many of a clip's first `tokens` tokens stay as they are when the clip goes on: those of whole blocks of 4 s.

    But for the loudest sound of a piece, to which its features are scaled (`log_mel`).
    """
    pieces, rest = divmod(tokens, PIECE_SAMPLES // TOKEN_SAMPLES)
    return pieces * (PIECE_SAMPLES // TOKEN_SAMPLES) + rest // BLOCK_TOKENS * BLOCK_TOKENS


def to_16_khz(samples: Floats, rate_hz: int) -> Floats:
    """Mono samples [n] at `rate_hz` -> float32 [about n * 16000 / rate_hz], at least one sample."""
    samples = np.ascontiguousarray(samples, np.float32)
    if rate_hz == INPUT_SAMPLE_RATE_HZ or not samples.size:
        return samples
    resampled = soxr.resample(samples, rate_hz, INPUT_SAMPLE_RATE_HZ)
    return resampled if resampled.size else samples[:1]


def speech_tokens(engine: SpeechTokenizerEngine, samples: Floats, made: FeatureBlocks | None = None) -> Ints:
    """Audio token ids of mono speech [n] at 16 kHz: int64 [ceil(n / 1280)]. `made`: see `log_mel`."""
    pieces = [(one.features, one.valid_frames) for one in speech_pieces(samples, engine.num_mel_bins, made)]
    if isinstance(engine, BatchedSpeechTokenizerEngine):
        ids = engine.tokens_of(pieces)
    else:
        ids = [engine.tokens(*piece) for piece in pieces]
    return np.concatenate(ids) if ids else np.zeros(0, np.int64)


def speech_pieces(samples: Floats, num_mel_bins: int, made: FeatureBlocks | None = None) -> Iterator[SpeechPiece]:
    """Cut mono speech [n] at 16 kHz into pieces of 30 s and make their features, one at a time. `made`: `log_mel`."""
    # The reference pads the pieces of a clip to the longest one. Only the very last frame can tell: its window
    # sees the zeros beyond the piece instead of a mirror image.
    longest = min(token_count(len(samples)) * TOKEN_SAMPLES, PIECE_SAMPLES)
    for start in range(0, len(samples), PIECE_SAMPLES):
        piece = np.asarray(samples[start : start + PIECE_SAMPLES], np.float32)
        frames = token_count(len(piece)) * (TOKEN_SAMPLES // HOP)
        yield SpeechPiece(log_mel(piece, frames, longest, num_mel_bins, made), -(-len(piece) // HOP))


def log_mel(
    samples: Floats, frames: int, padded_samples: int, num_mel_bins: int, made: FeatureBlocks | None = None
) -> Floats:
    """Whisper log-mel features of the first `frames` frames of `samples` followed by zeros up to `padded_samples`.

    Values more than 8 below the loudest of the whole padded clip (log10) are raised to that floor.

    Args:
        made: blocks of other clips, before the floor: speech that goes on is transformed once. The features are the
            same to the bit, as a block is made in one way and found by its samples.

    Returns:
        float32 [num_mel_bins, frames]; frame f is centred on sample 160 f.
    """
    # Up to two frames more see the end of the speech and may hold its maximum; zeros beyond those change nothing.
    heard = min(padded_samples // HOP, frames + 2)
    length = min(padded_samples, heard * HOP + N_FFT)
    padded = np.zeros(length + N_FFT, np.float32)
    edge = N_FFT // 2
    padded[edge : edge + len(samples)] = samples
    padded[:edge] = padded[2 * edge : edge : -1]  # reflection
    padded[length + edge :] = padded[length + edge - 2 : length - 2 : -1]
    features = np.empty((heard, num_mel_bins), np.float32)
    for start in range(0, heard, _BLOCK_FRAMES):
        stop = min(start + _BLOCK_FRAMES, heard)
        features[start:stop] = _log_bands(padded[start * HOP : (stop - 1) * HOP + N_FFT], num_mel_bins, made)
    np.maximum(features, features.max() - 8.0, out=features)
    return np.ascontiguousarray(((features[:frames] + 4.0) / 4.0).T)


def _log_bands(samples: Floats, num_mel_bins: int, made: FeatureBlocks | None) -> Floats:
    """log10 of the mel bands of every window in `samples`: float32 [windows, num_mel_bins]."""
    key = (num_mel_bins, b"" if made is None else hashlib.sha256(samples.tobytes()).digest())
    if made is not None and (found := made.get(key)) is not None:
        return found
    windows = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP]  # [windows, n_fft], a view
    spectrum = np.fft.rfft(windows * _hann_window())
    power = np.square(spectrum.real) + np.square(spectrum.imag)  # [windows, n_fft / 2 + 1]
    bands = np.log10(np.maximum(power @ mel_filters(num_mel_bins), 1e-10)).astype(np.float32)
    if made is not None:
        made.put(key, bands, bands.nbytes)
    return bands


@lru_cache(maxsize=4)
def mel_filters(num_mel_bins: int) -> NDArray[np.float64]:
    """Triangular filters on the Slaney mel scale, of equal area: [n_fft / 2 + 1, num_mel_bins]."""
    centres_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(MAX_MEL_HZ), num_mel_bins + 2))
    bins_hz = np.linspace(0.0, INPUT_SAMPLE_RATE_HZ / 2, N_FFT // 2 + 1)[:, None]
    widths = np.diff(centres_hz)
    rising = (bins_hz - centres_hz[:-2]) / widths[:-1]
    falling = (centres_hz[2:] - bins_hz) / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (centres_hz[2:] - centres_hz[:-2]))


# Slaney's scale: linear below 1 kHz (66.67 Hz a mel), logarithmic above (27 mels for a factor of 6.4).
_LINEAR_HZ, _KNEE_HZ, _KNEE_MEL, _LOG_STEP = 200.0 / 3, 1000.0, 15.0, np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _KNEE_HZ else _KNEE_MEL + float(np.log(hz / _KNEE_HZ)) / _LOG_STEP


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < _KNEE_MEL, mel * _LINEAR_HZ, _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL)))


@lru_cache(maxsize=1)
def _hann_window() -> NDArray[np.float64]:
    """Periodic Hann window."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
