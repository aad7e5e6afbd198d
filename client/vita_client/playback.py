"""Sound out: plays PCM on the machine's output device while it streams (optional package `sounddevice`)."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from typing_extensions import Self

#: Samples handed to the device at once, so that `stop()` takes effect within 0.1 s.
_BLOCK_SAMPLES = OUTPUT_SAMPLE_RATE_HZ // 10


class Player:
    """Plays int16 mono samples in the order given. `write` never waits for the device: a thread feeds it.

    Raises:
        InvalidRequest: field play; no `sounddevice` package, or no output device.
    """

    def __init__(self) -> None:
        self._device = _open_device()
        self._pieces: queue.Queue[NDArray[np.int16] | None] = queue.Queue()
        self._stopped = threading.Event()
        self._played = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._feed, name="vita-playback", daemon=True)
        self._thread.start()

    def write(self, samples: NDArray[np.int16]) -> None:
        """Queue int16 [samples]; an error of the device since the last call is raised here."""
        self._raise_failure()
        self._pieces.put(samples)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise OSError(f"the output device failed: {self._failure}")

    @property
    def played_s(self) -> float:
        """Seconds that the device was given: what a listener has heard, but for its own buffer."""
        return self._played / OUTPUT_SAMPLE_RATE_HZ

    def finish(self) -> None:
        """Wait until everything has been played; an error of the device since the last call is raised here."""
        self._end()
        self._raise_failure()

    def stop(self) -> None:
        """Fall silent now; also after a `finish` that failed or was interrupted."""
        self._stopped.set()
        self._end()

    def _end(self) -> None:
        self._pieces.put(None)
        self._thread.join()
        device, self._device = self._device, None
        if device is not None:  # PortAudio must not close one twice
            device.close()

    def _feed(self) -> None:
        try:
            while (samples := self._pieces.get()) is not None:
                for start in range(0, len(samples), _BLOCK_SAMPLES):
                    if self._stopped.is_set():
                        return
                    block = samples[start : start + _BLOCK_SAMPLES]
                    self._device.write(np.ascontiguousarray(block))
                    self._played += len(block)
            self._device.stop()  # waits for what the device still holds
        except Exception as error:  # noqa: BLE001 - kept for the caller's thread, see write()
            self._failure = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.stop()


def _open_device() -> Any:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is there, the PortAudio library is not
        raise InvalidRequest(
            "play", True, f"sound cannot be played here ({error})", "install the extra 'play', or write a file with -o"
        ) from error
    try:
        device = sounddevice.OutputStream(samplerate=OUTPUT_SAMPLE_RATE_HZ, channels=1, dtype="int16")
        device.start()
    except sounddevice.PortAudioError as error:
        raise InvalidRequest("play", True, f"no output device ({error})", "write a file with -o") from error
    return device
