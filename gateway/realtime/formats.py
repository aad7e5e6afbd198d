"""Sound as bytes of the three formats of the Realtime interface, and as samples; resampled without a seam."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from gateway.realtime.turn_taking import RATE_HZ
from gateway.sound.resample import Resampler

#: libsndfile's name and bytes a sample of each format, and its rate.
_FORMATS = {"audio/pcm": ("PCM_16", 2, 24_000), "audio/pcmu": ("ULAW", 1, 8_000), "audio/pcma": ("ALAW", 1, 8_000)}


class SpeechReader:
    """Bytes of one stream of speech, in pieces of any length -> float32 [samples] at 16 kHz."""

    def __init__(self, format_name: str) -> None:
        self._subtype, self._sample_bytes, self._rate_hz = _FORMATS[format_name]
        self._rest = b""
        self._resampler = self._new_resampler()

    def read(self, sound: bytes) -> NDArray[np.float32]:
        """The next bytes; half a sample waits for its other half."""
        sound = self._rest + sound
        whole = len(sound) // self._sample_bytes * self._sample_bytes
        self._rest = sound[whole:]
        return self._resampler.resample_chunk(self._decoded(sound[:whole]))

    def finish(self) -> NDArray[np.float32]:
        """What the resampler still holds, about 20 ms; a new stream begins after it."""
        held, self._rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True), b""
        self._resampler = self._new_resampler()
        return held

    def _new_resampler(self) -> soxr.ResampleStream:
        return soxr.ResampleStream(self._rate_hz, RATE_HZ, 1, dtype="float32")

    def _decoded(self, sound: bytes) -> NDArray[np.float32]:
        if not sound:
            return np.zeros(0, np.float32)
        samples, _ = soundfile.read(
            io.BytesIO(sound),
            dtype="float32",
            format="RAW",
            subtype=self._subtype,
            samplerate=self._rate_hz,
            channels=1,
            endian="LITTLE",
        )
        return samples


def read_speech(sound: bytes, format_name: str) -> NDArray[np.float32]:
    """Speech that is complete, as samples at 16 kHz."""
    reader = SpeechReader(format_name)
    return np.concatenate([reader.read(sound), reader.finish()])


class SoundWriter:
    """The sound of one answer, int16 [samples] at 22 050 Hz in pieces -> bytes of a format, at a speed."""

    def __init__(self, format_name: str, speed: float = 1.0) -> None:
        self._subtype, self._sample_bytes, self._rate_hz = _FORMATS[format_name]
        self._resampler = Resampler(self._rate_hz, speed)

    def write(self, samples: NDArray[np.int16]) -> bytes:
        """The next piece."""
        return self._encoded(self._resampler.push(samples))

    def finish(self) -> bytes:
        """What is still held, about 30 ms."""
        return self._encoded(self._resampler.finish())

    def seconds(self, sound: bytes) -> float:
        """How long what was written sounds."""
        return len(sound) / self._sample_bytes / self._rate_hz

    def _encoded(self, samples: NDArray[np.int16]) -> bytes:
        encoded = io.BytesIO()
        soundfile.write(encoded, samples, self._rate_hz, format="RAW", subtype=self._subtype, endian="LITTLE")
        return encoded.getvalue()
