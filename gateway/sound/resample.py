"""The sound of an answer at another rate and speed, piece by piece and without a seam."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from gateway.sound.speed import Tempo
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ


class Resampler:
    """int16 [samples] at 22 050 Hz in pieces -> int16 [samples] at `rate_hz`.

    Args:
        speed: of the speech, from 0.25 to 4.
    """

    def __init__(self, rate_hz: int, speed: float = 1.0) -> None:
        self._resampler = soxr.ResampleStream(OUTPUT_SAMPLE_RATE_HZ, rate_hz, 1, dtype="int16")
        self._tempo = None if speed == 1 else Tempo(speed, OUTPUT_SAMPLE_RATE_HZ)

    def push(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """What is ready of it, which may be nothing."""
        return self._resampler.resample_chunk(samples if self._tempo is None else self._tempo.push(samples))

    def finish(self) -> NDArray[np.int16]:
        """What is still held, about 30 ms."""
        rest = np.zeros(0, np.int16) if self._tempo is None else self._tempo.finish()
        return self._resampler.resample_chunk(rest, last=True)
