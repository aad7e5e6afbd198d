"""WAV (PCM, 16 bit, mono) while it is made: a file is valid after every piece, a pipe gets the header of a stream."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from typing_extensions import Self

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
#: Size of data whose end is not known yet; readers take what comes.
_UNKNOWN_SIZE = 2**32 - 1
#: The sizes in the header are 32-bit numbers.
_MAX_SAMPLES = (_UNKNOWN_SIZE - _HEADER.size) // 2


class WavWriter:
    """Writes int16 samples at 22 050 Hz as they come.

    A path that can seek gets the samples of a piece first, then the header that counts them: a process killed between
    the two leaves a file that is valid and lacks only that piece. All else (a FIFO, an open binary file) is a stream:
    one header, with the size 0xFFFFFFFF. An open file is not closed.

    Raises:
        InvalidRequest: field output; the file cannot be written. OSError: later, for example on a full disk.
    """

    def __init__(self, output: str | os.PathLike[str] | BinaryIO) -> None:
        self.samples = 0
        self.path = os.fspath(output) if isinstance(output, (str, os.PathLike)) else "-"
        self._file: BinaryIO
        if isinstance(output, (str, os.PathLike)):
            try:
                self._file, self._owned = open(output, "wb"), True  # noqa: SIM115 - closed by close()
            except OSError as error:
                raise InvalidRequest("output", self.path, f"it cannot be written ({error.strerror})") from error
        else:
            self._file, self._owned = output, False
        self._counted = self._owned and self._file.seekable()
        self._write_header()

    @property
    def seconds(self) -> float:
        return self.samples / OUTPUT_SAMPLE_RATE_HZ

    def write(self, samples: NDArray[np.int16]) -> None:
        """Append int16 [samples]."""
        if self._counted and self.samples + len(samples) > _MAX_SAMPLES:
            raise OSError("a WAV file holds at most 4 GiB")
        self._file.write(np.ascontiguousarray(samples, "<i2").tobytes())
        self._file.flush()
        self.samples += len(samples)
        if self._counted:
            self._file.seek(0)
            self._write_header()
            self._file.seek(0, os.SEEK_END)

    def _write_header(self) -> None:
        rate_hz, size = OUTPUT_SAMPLE_RATE_HZ, 2 * self.samples if self._counted else _UNKNOWN_SIZE
        riff_size = size + _HEADER.size - 8 if self._counted else _UNKNOWN_SIZE
        form = (b"RIFF", riff_size, b"WAVE", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16, b"data", size)
        self._file.write(_HEADER.pack(*form))
        self._file.flush()

    def close(self) -> None:
        if self._owned:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
