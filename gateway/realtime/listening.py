"""The input audio buffer of a session: bytes in, turns of speech out, by turn detection or by the client's word."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.realtime.events import EventError
from gateway.realtime.formats import SpeechReader
from gateway.realtime.session import AudioInput
from gateway.realtime.turn_taking import RATE_HZ, SpeechStarted, TurnDetector
from vita_audio.contract.limits import MAX_AUDIO_SECONDS

Speech = NDArray[np.float32]
_MIN_COMMIT_SAMPLES = RATE_HZ // 10
#: Without turn detection the buffer keeps the last so many samples, and only the first of them are read ahead: a
#: client may leave its microphone open for hours.
_LONGEST_SAMPLES, _AHEAD_SAMPLES = int((MAX_AUDIO_SECONDS - 1) * RATE_HZ), 30 * RATE_HZ
#: Turn detection is run on so much at a time, that other sessions come between.
_SLICE_SAMPLES = RATE_HZ // 2
#: Speech is found some chunks after its beginning.
_DETECTION_SAMPLES = 2048


@dataclass(frozen=True, slots=True)
class Began:
    """Speech was detected, from `at_ms` of all sound that was appended."""

    at_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class Goes:
    """More of a turn that is not complete: from its sample `at` on."""

    at: int
    speech: Speech


@dataclass(frozen=True, slots=True)
class Broken:
    """The turn has lost its beginning: what `Goes` brought of it does not count."""


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """The silence after a turn was detected: the whole of it."""

    at_ms: int
    speech: Speech


class Listener:
    """Owns what was appended and belongs to no item yet.

    Args:
        settings: of the session; changed by `configure`.
    """

    def __init__(self, settings: AudioInput) -> None:
        self._settings = settings
        self._reader = SpeechReader(settings.format.type)
        self._pieces: deque[Speech] = deque()
        self._from = self._position = 0  # samples: of the first piece, and of all that came
        self._start: int | None = None  # of the turn that was detected
        self._told = 0  # up to here `Goes` was told
        self._detector = self._new_detector()

    @property
    def speaking(self) -> bool:
        return self._start is not None

    @property
    def position_ms(self) -> int:
        return self._position * 1000 // RATE_HZ

    def configure(self, settings: AudioInput) -> bool:
        """New settings. Whether a turn was broken off: turn detection was switched on or off, in the middle of one."""
        before, self._settings = self._settings, settings
        if before.format != settings.format:
            self._reader = SpeechReader(settings.format.type)
        if self._detector is None or settings.turn_detection is None:
            self._start, self._detector = None, self._new_detector()
            return before.turn_detection != settings.turn_detection
        self._detector.rules = settings.turn_detection.rules()
        return False

    def append(self, sound: bytes) -> Iterator[Began | Goes | Broken | Ended | None]:
        """What the next bytes bring; None after each half second, for other things to be done."""
        samples = self._reader.read(sound)
        for at in range(0, len(samples), _SLICE_SAMPLES):
            piece = samples[at : at + _SLICE_SAMPLES]
            self._pieces.append(piece)
            self._position += len(piece)
            yield from self._by_hand(piece) if self._detector is None else self._detected(self._detector, piece)
            yield None

    def commit(self) -> Speech:
        """The turn so far becomes an item, by the client's word.

        Raises:
            EventError: there is less than 100 ms of it.
        """
        if self._detector is None:
            self._pieces.append(tail := self._reader.finish())
            self._position += len(tail)
            speech = self._between(self._from)
        else:
            speech = self._between(self._position if self._start is None else self._start)
        if len(speech) < _MIN_COMMIT_SAMPLES:
            length_ms = len(speech) * 1000 / RATE_HZ
            raise EventError(
                f"the input audio buffer has {length_ms:.0f} ms of speech; a commit needs at least 100 ms",
                "input_audio_buffer_commit_empty",
            )
        self.clear()
        return speech

    def clear(self) -> None:
        """Forget what belongs to no item yet."""
        self._pieces.clear()
        self._from, self._start = self._position, None
        if self._detector is not None:
            self._detector.reset()
        else:
            self._reader.finish()

    def silence(self, seconds: float) -> Speech:
        """The last `seconds` of what came, or as much silence if it is not kept."""
        wanted = int(seconds * RATE_HZ)
        kept = self._between(max(self._from, self._position - wanted))
        self.clear()
        return np.concatenate([np.zeros(wanted - len(kept), np.float32), kept])

    def _by_hand(self, piece: Speech) -> Iterator[Goes | Broken]:
        length = self._position - self._from
        if length <= _AHEAD_SAMPLES:
            yield Goes(length - len(piece), piece)
        elif length > _LONGEST_SAMPLES:
            self._drop_before(self._position - _LONGEST_SAMPLES)
            yield Broken()

    def _detected(self, detector: TurnDetector, piece: Speech) -> Iterator[Began | Goes | Ended]:
        for event in detector.push(piece):
            if isinstance(event, SpeechStarted):
                self._start = self._told = max(event.sample, self._from)
                yield Began(self._start * 1000 // RATE_HZ)
            elif self._start is not None:
                speech, self._start = self._between(self._start, event.sample), None
                yield Ended(event.sample * 1000 // RATE_HZ, speech)
                self._drop_before(event.sample)
        if self._start is None:
            padding = detector.rules.prefix_padding_ms * RATE_HZ // 1000
            self._drop_before(self._position - padding - _DETECTION_SAMPLES)
        else:
            new = piece if self._told == self._position - len(piece) else self._between(self._told)
            yield Goes(self._told - self._start, new)
            self._told = self._position

    def _between(self, start: int, end: int | None = None) -> Speech:
        whole = np.concatenate([np.zeros(0, np.float32), *self._pieces])
        return whole[start - self._from : None if end is None else end - self._from]

    def _drop_before(self, sample: int) -> None:
        while self._pieces and self._from + len(self._pieces[0]) <= sample:
            self._from += len(self._pieces.popleft())

    def _new_detector(self) -> TurnDetector | None:
        detection = self._settings.turn_detection
        return None if detection is None else TurnDetector(detection.rules(), self._position)
