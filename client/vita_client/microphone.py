"""Speech from a microphone, a turn at a time (optional package `sounddevice`)."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client.conversation import Conversation
from vita_client.stdin import standard_input

if TYPE_CHECKING:
    from vita_client.talk import Turn

#: Samples that the device gives at once.
_BLOCK_SAMPLES = INPUT_SAMPLE_RATE_HZ // 10


def from_microphone() -> Iterator[Turn]:
    """Turns that are spoken: Enter begins one and ends it; the end of standard input ends the conversation.

    While a turn is spoken it is appended, so that the server reads it already.

    Raises:
        InvalidRequest: field microphone; no `sounddevice` package, no input device, or standard input is closed.
    """
    enter = standard_input("microphone")
    while True:
        print("press Enter, speak, press Enter", file=sys.stderr, flush=True)
        if not enter.readline():
            return
        yield _speak


def _speak(talk: Conversation) -> None:
    pieces: queue.Queue[NDArray[np.int16] | None] = queue.Queue()

    def taken(samples: NDArray[np.int16], *_: object) -> None:
        pieces.put(samples[:, 0].copy())

    def wait_for_enter() -> None:
        standard_input("microphone").readline()
        pieces.put(None)

    device = _open_device(taken)
    threading.Thread(target=wait_for_enter, name="vita-enter", daemon=True).start()
    try:
        while (piece := pieces.get()) is not None:
            talk.append_audio(piece)
    finally:
        device.stop()
        device.close()


def _open_device(taken: Any) -> Any:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is there, the PortAudio library is not
        raise InvalidRequest(
            "microphone",
            True,
            f"there is none to speak into ({error})",
            "install the extra 'play', or name sound files",
        ) from error
    try:
        device = sounddevice.InputStream(
            samplerate=INPUT_SAMPLE_RATE_HZ, channels=1, dtype="int16", blocksize=_BLOCK_SAMPLES, callback=taken
        )
        device.start()
    except sounddevice.PortAudioError as error:
        raise InvalidRequest("microphone", True, f"no input device ({error})", "name sound files") from error
    return device
