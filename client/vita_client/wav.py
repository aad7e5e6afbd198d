"""A WAV file (PCM, 16 bit, mono) that is valid after every piece written, so that an interrupted one still plays."""

from __future__ import annotations

import os
import wave
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from typing_extensions import Self

#: The sizes in the header are 32-bit numbers.
_MAX_SAMPLES = (2**32 - 1 - 44) // 2


class WavWriter:
    """Writes int16 samples as they come: those of a piece first, then the header that counts them. A process killed
    between the two leaves a file that is valid and lacks only that piece.

    Raises:
        InvalidRequest: field output; the file cannot be written. OSError: later, for example on a full disk.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate_hz: int = OUTPUT_SAMPLE_RATE_HZ) -> None:
        self.path, self.sample_rate_hz, self.samples = path, sample_rate_hz, 0
        try:
            file = open(path, "wb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise InvalidRequest("output", os.fspath(path), f"it cannot be written ({error.strerror})") from error
        self._wave, self._file = wave.open(file, "wb"), file  # noqa: SIM115 - as its file
        self._wave.setparams((1, 2, sample_rate_hz, 0, "NONE", ""))
        self.write(np.zeros(0, np.int16))

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate_hz

    def write(self, samples: NDArray[np.int16]) -> None:
        """Append int16 [samples]."""
        if self.samples + len(samples) > _MAX_SAMPLES:
            raise OSError("a WAV file holds at most 4 GiB")
        self._wave.writeframes(np.ascontiguousarray(samples, np.int16).tobytes())
        self._file.flush()
        self.samples += len(samples)

    def close(self) -> None:
        self._wave.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
