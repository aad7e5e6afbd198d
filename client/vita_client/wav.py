"""A WAV file (PCM, 16 bit, mono) that is valid after every piece written, so that an interrupted one still plays."""

from __future__ import annotations

import os
import struct
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from typing_extensions import Self

_SAMPLE_BYTES = 2
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
#: The sizes in the header are 32-bit numbers.
_MAX_DATA_BYTES = 2**32 - 1 - _HEADER.size


def wav_header(data_bytes: int, sample_rate_hz: int) -> bytes:
    """The 44 bytes before `data_bytes` of int16 mono samples."""
    return _HEADER.pack(
        b"RIFF", _HEADER.size - 8 + data_bytes, b"WAVE",
        b"fmt ", 16, 1, 1, sample_rate_hz, sample_rate_hz * _SAMPLE_BYTES, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES,
        b"data", data_bytes,
    )  # fmt: skip


class WavWriter:
    """Writes int16 samples as they come. The samples of a piece go to the file first, then the header that counts them:
    a process killed between the two leaves a file that is valid and lacks only that piece.

    Raises:
        InvalidRequest: field output; the file cannot be written. OSError: later, for example on a full disk.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate_hz: int = OUTPUT_SAMPLE_RATE_HZ) -> None:
        self.samples = 0
        self.sample_rate_hz = sample_rate_hz
        try:
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise InvalidRequest("output", os.fspath(path), f"it cannot be written ({error.strerror})") from error
        self._write_at(0, wav_header(0, sample_rate_hz))

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate_hz

    def write(self, samples: NDArray[np.int16]) -> None:
        """Append int16 [samples]."""
        data = np.ascontiguousarray(samples, dtype="<i2").tobytes()
        end = self.samples * _SAMPLE_BYTES
        if end + len(data) > _MAX_DATA_BYTES:
            raise OSError("a WAV file holds at most 4 GiB")
        self._write_at(_HEADER.size + end, data)
        self._write_at(0, wav_header(end + len(data), self.sample_rate_hz))
        self.samples += len(samples)

    def _write_at(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        view = memoryview(data)
        while view:  # an unbuffered write may be partial
            view = view[self._file.write(view) :]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
