"""What a client keeps of a conversation: the turns so far as ids, and the turn that is being spoken. No network here.

The server keeps nothing. Its first response has the ids of the whole prompt, and these with the answer's are sent with
the next turn; so is the speech of earlier turns, where the server asks for it. A turn that failed before its first
response is still there and may be sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import RequestFields
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ, whole_tokens
from vita_audio.contract.request import check_field
from vita_client.audio import mono
from vita_client.events import Event, PromptIds, StatusUpdate, TokensDelta
from vita_client.request import Request, build_request, past_speech

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Speech is tokenized in blocks of so many seconds, which later speech does not change: each is worth reading ahead.
BLOCK_S = 4.0
#: More than a block has to be there: its last features see a little of what follows.
_MARGIN_S = 0.2
#: What was heard is often told in whole milliseconds, rounded either way.
_ROUNDING_S = 0.001
_OWN_FIELDS = {"audio", "sample_rate", "history", "history_audio", "history_audio_samples", "heard", "read_only"}


class Turns:
    """The state of one conversation.

    Args:
        fields: of every request, but `system`, which goes with the first; `history_overflow` is "drop" unless given.

    Raises:
        InvalidRequest: a field belongs to a turn, or to the conversation itself.
    """

    def __init__(self, **fields: Unpack[RequestFields]) -> None:
        for name in sorted(_OWN_FIELDS & fields.keys()):
            raise InvalidRequest(name, "given", "the conversation sets it itself", "leave it out")
        self._fields = fields
        self.history: tuple[int, ...] = ()
        #: The speech in the history that has to be sent with it, float32 at 16 kHz; only Plus checkpoints want any.
        self.clips: tuple[NDArray[np.float32], ...] = ()
        #: Audio tokens of the last answer that were heard, where the rest of it was never said; None: all of it was.
        self.heard_tokens: int | None = None
        self._prompt: tuple[int, ...] | None = None  # of the answer that is coming
        self._tokens: list[int] = []
        self._sent: tuple[NDArray[np.float32], ...] = ()  # the clip of its question
        self._clips_due: int | None = None
        self.answering = False
        self.clear()

    def clear(self) -> None:
        """Forget what was appended to the turn."""
        self._audio: list[NDArray[np.float32]] = []
        self._rate_hz, self._samples, self._blocks = INPUT_SAMPLE_RATE_HZ, 0, 0
        self._text: list[str] = []

    @property
    def seconds(self) -> float:
        """Of the speech that was appended to the turn."""
        return self._samples / self._rate_hz

    def append_audio(self, samples: NDArray[np.generic], sample_rate: int = INPUT_SAMPLE_RATE_HZ) -> None:
        """Add speech to the turn: floats in [-1, 1], int16 or int32, [samples] or [samples, channels].

        Raises:
            InvalidRequest: an answer is coming; shape, type or rate is wrong, or the turn is longer than 120 s.
        """
        self._must_be_open("AUDIO")
        rate_hz = check_field("SAMPLE_RATE", sample_rate)
        if self._audio and rate_hz != self._rate_hz:
            raise InvalidRequest("SAMPLE_RATE", rate_hz, f"this turn began with {self._rate_hz} Hz", "keep to it")
        added = mono(samples)
        if not np.isfinite(added).all():
            raise InvalidRequest("AUDIO", "NaN or infinity", "they are no sound", "send numbers")
        if (self._samples + len(added)) / rate_hz > MAX_AUDIO_SECONDS:
            seconds = (self._samples + len(added)) / rate_hz
            raise InvalidRequest(
                "AUDIO",
                f"{seconds:.1f} s in all",
                f"a turn has at most {MAX_AUDIO_SECONDS:g} s",
                "respond",
            )
        self._rate_hz = rate_hz
        self._audio.append(added)
        self._samples += len(added)

    def append_text(self, text: str) -> None:
        """Add text to the turn. Raises InvalidRequest: an answer is coming, or it is no text."""
        self._must_be_open("TEXT")
        self._text.append(check_field("TEXT", text))

    def heard(self, seconds: float) -> None:
        """Of the last answer only the first `seconds` of its sound were heard: the rest of it was never said.

        Raises:
            InvalidRequest: an answer is still coming, there was none, or the number is below 0.
        """
        self._must_be_open("HEARD")
        if not self.history or not 0 <= seconds < float("inf"):
            raise InvalidRequest("HEARD", seconds, "it is seconds of the last answer, from 0", "leave it out")
        self.heard_tokens = whole_tokens(seconds + _ROUNDING_S)

    def read_ahead(self) -> Request | None:
        """A request that takes in what is there of the turn, once a further block of speech is complete.

        Where clips have to be sent again, what can be read ahead is what comes before this turn's: once is enough.
        """
        blocks = int((self.seconds - _MARGIN_S) / BLOCK_S)
        if blocks <= self._blocks or (self._blocks and self.clips):
            return None
        self._blocks = blocks
        return self._request(None, read_only=1)

    def respond(self, text: str | None = None, **fields: Unpack[RequestFields]) -> Request:
        """The request that the turn is, with `text` and `fields` for this one only. The answer comes until `end`.

        Raises:
            InvalidRequest: an answer is coming already, the turn is empty, or a field is wrong.
        """
        self._must_be_open("TEXT")
        request = self._request(text, **fields)
        self.answering, self._prompt, self._tokens, self._clips_due = True, None, [], None
        self._sent = (request.values["AUDIO"],) if "AUDIO" in request.values else ()
        return request

    def event(self, event: Event) -> None:
        """An event of the answer."""
        if isinstance(event, PromptIds):
            self._prompt = event.ids
        elif isinstance(event, TokensDelta):
            self._tokens.extend(event.ids)
        elif isinstance(event, StatusUpdate) and self._clips_due is None:
            self._clips_due = event.status.history_clips

    def end(self) -> None:
        """No more of the answer comes: what came is part of the conversation. May be called more than once."""
        if self.answering and self._prompt is not None:
            self.history, self.heard_tokens = (*self._prompt, *self._tokens), None
            clips = (*self.clips, *self._sent)
            self.clips = clips[len(clips) - (self._clips_due or 0) :]
            self.clear()
        self.answering = False

    def _request(self, text: str | None, **fields: Unpack[RequestFields]) -> Request:
        turn: RequestFields = {"history_overflow": "drop", **self._fields, **fields}
        if self._audio:
            turn["audio"], turn["sample_rate"] = np.concatenate(self._audio), self._rate_hz
        if self.history:
            turn["history"], turn["heard"], turn["system"] = np.asarray(self.history, np.int32), self.heard_tokens, None
            turn.update(past_speech(self.clips))
        texts = self._text if text is None else [*self._text, text]
        return build_request(" ".join(texts) if texts else None, **turn)

    def _must_be_open(self, field: str) -> None:
        if self.answering:
            raise InvalidRequest(field, None, "an answer is still coming", "read it to its end, or cancel it")
