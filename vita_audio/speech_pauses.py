"""Pauses in speech are shortened before it is tokenized: silence has no words, and each second of it costs 12.5 tokens.

A pause is where no sample of 10 ms is above -50 dB of full scale. 0.3 s of it stay before the first sound and after the
last one, and 1 s between two sounds. Where the noise of a room is louder than that, nothing is a pause.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ

QUIET = 10 ** (-50 / 20)
#: A clip that is never louder holds no speech: a microphone that is muted, or a cable that is not there.
SILENT = 10 ** (-60 / 20)
FRAME_SAMPLES = INPUT_SAMPLE_RATE_HZ // 100
EDGE_FRAMES, PAUSE_FRAMES = 30, 100


def is_silent(samples: NDArray[np.float32]) -> bool:
    """Whether no sample is above -60 dB of full scale."""
    return float(np.abs(samples).max(initial=0.0)) <= SILENT


def shorten_pauses(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mono speech [n] at 16 kHz without what is too long of its pauses.

    What is cut depends on the speech up to there alone, but for the last pause: a clip that goes on begins the same.
    """
    frames = -(-len(samples) // FRAME_SAMPLES)
    padded = np.zeros(frames * FRAME_SAMPLES, np.float32)
    padded[: len(samples)] = samples
    loud = np.flatnonzero(np.abs(padded.reshape(frames, FRAME_SAMPLES)).max(axis=1) > QUIET)
    if not len(loud):
        return samples
    keep = np.ones(frames, bool)
    keep[: max(0, loud[0] - EDGE_FRAMES)] = False
    keep[loud[-1] + 1 + EDGE_FRAMES :] = False
    for before in np.flatnonzero(np.diff(loud) - 1 > PAUSE_FRAMES):
        # Half of what stays lies at each end, so that no sound loses its rise or its fall.
        keep[loud[before] + 1 + PAUSE_FRAMES // 2 : loud[before + 1] - PAUSE_FRAMES // 2] = False
    if keep.all():
        return samples
    return samples[np.repeat(keep, FRAME_SAMPLES)[: len(samples)]]
