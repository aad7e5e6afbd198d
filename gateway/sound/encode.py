"""The sound of an answer as a file of a format that callers ask for, piece by piece: 24 kHz, mono."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from gateway.sound.resample import Resampler

RATE_HZ = 24_000
#: Formats that say what they are; and all of them.
FileFormat = Literal["mp3", "opus", "aac", "flac", "wav"]
Format = Literal[FileFormat, "pcm"]
#: The Content-Type of each format.
CONTENT_TYPES: dict[Format, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
#: FFmpeg's container and codec, and its options.
_CODECS: dict[Format, tuple[str, str, dict[str, str]]] = {
    "mp3": ("mp3", "libmp3lame", {"write_xing": "0"}),
    "opus": ("ogg", "libopus", {}),
    "aac": ("adts", "aac", {}),
    "flac": ("flac", "flac", {}),
}
#: Of a WAV file whose length is not known when it begins.
_UNKNOWN_BYTES = 0xFFFFFFFF


class Encoder:
    """int16 [samples] at 22 050 Hz in pieces -> bytes of one file, without a seam between the pieces; `close` it.

    Args:
        name: of its format.
        speed: of the speech, from 0.25 to 4.
    """

    def __init__(self, name: Format, speed: float = 1.0) -> None:
        self._resampler = Resampler(RATE_HZ, speed)
        self._file: _Raw | _Compressed = _Compressed(*_CODECS[name]) if name in _CODECS else _Raw(name == "wav")

    def push(self, samples: NDArray[np.int16]) -> bytes:
        """The bytes that are ready, which may be none."""
        return self._file.push(self._resampler.push(samples))

    def finish(self) -> bytes:
        """The end of the file."""
        return self._file.push(self._resampler.finish()) + self._file.finish()

    def close(self) -> None:
        """Also of a file that was not finished: PyAV before 17.0.1 may crash when it collects one that is open."""
        self._file.close()


class _Raw:
    """int16, little endian, with the header of a WAV file or without."""

    def __init__(self, with_header: bool) -> None:
        self._header = _wav_header() if with_header else b""

    def push(self, samples: NDArray[np.int16]) -> bytes:
        header, self._header = self._header, b""
        return header + samples.astype("<i2").tobytes()

    def finish(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def _wav_header() -> bytes:
    shape = struct.pack("<IHHIIHH", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    unknown = struct.pack("<I", _UNKNOWN_BYTES)
    return b"RIFF" + unknown + b"WAVEfmt " + shape + b"data" + unknown


class _Compressed:
    """By FFmpeg, into a file that it cannot go back in."""

    def __init__(self, container: str, codec: str, options: dict[str, str]) -> None:
        self._sink, self._pushed = _Sink(), 0
        self._container = av.open(self._sink, "w", format=container, container_options=options)
        self._stream: Any = self._container.add_stream(codec, rate=RATE_HZ, layout="mono")

    def push(self, samples: NDArray[np.int16]) -> bytes:
        if len(samples):
            frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, self._pushed, Fraction(1, RATE_HZ)
            self._pushed += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self.close()
        return self._sink.take()

    def close(self) -> None:
        self._container.close()


class _Sink:
    """What FFmpeg writes, until it is taken."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        written, self._written = bytes(self._written), bytearray()
        return written
