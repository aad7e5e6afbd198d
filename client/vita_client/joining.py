"""The events of several streams, one after another, as those of one: what lies between two pieces is decided here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vita_audio.contract.messages import Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_client.events import Event, Metrics, Pcm, PromptIds, StatusUpdate, TextDelta
from vita_client.sentences import ends_sentence

#: From the last sound of a sentence to the first of the next one, in seconds. The model's own silence counts.
PAUSE_S = 0.4
#: The largest sample, of int16, that is silence.
_QUIET = 200


class Joiner:
    """Takes the events of piece after piece and gives those of one stream.

    `status` is the last one, with the seed of the first; `sounds`: the piece has had sound.
    """

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.status: Status | None = None
        self.sounds = False
        self._reason = ""
        self._piece = ""
        self._silent = 0  # samples at the end of the sound so far
        self._blank = self._pause = False  # to come before the next text, before the next sound

    def begin(self, piece: str) -> None:
        """The next piece, with the white space that follows it."""
        self._blank, self._pause = self._piece[-1:].isspace(), ends_sentence(self._piece)
        self._piece, self.sounds = piece, False

    def add(self, event: Event, at_ms: float) -> list[Event]:
        """An event of the piece, at a time since the beginning of the whole."""
        events: list[Event] = []
        if isinstance(event, TextDelta):
            events.append(TextDelta(f" {event.text}") if self._blank else event)
            self._blank = False
        elif isinstance(event, Pcm):
            events.extend([*self._silence_before(event), event])
            self.sounds = True
        elif isinstance(event, StatusUpdate):
            events.extend(self._of_one_stream(event.status))
        elif not isinstance(event, PromptIds):
            events.append(event)
        for shown in events:
            self.metrics.add(shown, at_ms)
        return events

    def end(self) -> list[Event]:
        """After the last piece: the final status."""
        if self.status is None:
            return []
        self.status = replace(self.status, state="done", reason=self._reason)
        return [StatusUpdate(self.status)]

    def _silence_before(self, sound: Pcm) -> list[Event]:
        """What is missing of the pause before the first sound of a piece."""
        loud = np.flatnonzero(np.abs(sound.samples.astype(np.int32)) > _QUIET)
        before = int(loud[0]) if loud.size else len(sound.samples)
        missing = int(PAUSE_S * OUTPUT_SAMPLE_RATE_HZ) - self._silent - before if self._pause else 0
        self._silent = len(sound.samples) - 1 - int(loud[-1]) if loud.size else self._silent + before + max(missing, 0)
        self._pause = False
        return [Pcm(np.zeros(missing, np.int16))] if missing > 0 else []

    def _of_one_stream(self, status: Status) -> list[Event]:
        """A piece that is done is not the end of the stream."""
        self.metrics.responses += 1
        seed = status.seed if self.status is None else self.status.seed
        status = replace(status, seed=seed, index=self.metrics.responses - 1)
        if status.state == "done":
            if self._reason in ("", "end_token"):
                self._reason = status.reason
            self.status = replace(status, state="running", reason="")
            return []
        self.status = status
        return [StatusUpdate(self.status)]
