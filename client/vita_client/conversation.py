"""Several turns with one server: `Conversation`, and `AsyncConversation`, the same with `await`.

Speech is appended while it is being spoken, and read by the server block by block, so that the time to the answer does
not grow with its length. Reading ahead only saves time: where it fails (a full server), the answer is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.errors import VitaError
from vita_audio.contract.fields import RequestFields
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client.channel import DEFAULT_TIMEOUT_S
from vita_client.turns import Turns

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from vita_client.aio import AsyncStream
    from vita_client.client import Stream


class ConversationBase:
    """What both kinds share; errors of all methods are `InvalidRequest` for what is wrong with a turn."""

    def __init__(
        self,
        client: Any,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[RequestFields],
    ) -> None:
        self._client, self._turns = client, Turns(**fields)
        self._timeout_s, self._headers = timeout_s, headers

    @property
    def history(self) -> tuple[int, ...]:
        """The ids of all turns so far: with them, `clips` and `heard_tokens` the conversation can go on elsewhere
        (`resume`).
        """
        return self._turns.history

    @property
    def clips(self) -> tuple[NDArray[np.float32], ...]:
        """Speech of earlier turns, at 16 kHz, that goes with `history`; empty unless a Plus checkpoint is served."""
        return self._turns.clips

    @property
    def heard_tokens(self) -> int | None:
        """Audio tokens of the last answer that were heard (`heard`), 12.5 a second; None: all of it was."""
        return self._turns.heard_tokens

    def resume(
        self, history: tuple[int, ...], clips: Sequence[NDArray[np.float32]] = (), heard_tokens: int | None = None
    ) -> None:
        """Go on from `history`, `clips` and `heard_tokens` of another conversation with the same checkpoint."""
        self._turns.history, self._turns.clips, self._turns.heard_tokens = tuple(history), tuple(clips), heard_tokens

    @property
    def seconds(self) -> float:
        """Of the speech that was appended to the turn."""
        return self._turns.seconds

    def append_text(self, text: str) -> None:
        """Add text to the turn; parts are joined by blanks."""
        self._turns.append_text(text)

    def clear(self) -> None:
        """Forget what was appended to the turn."""
        self._turns.clear()

    def heard(self, seconds: float) -> None:
        """Of the last answer, which was cancelled or not, only the first `seconds` of sound were heard."""
        self._turns.heard(seconds)


class Conversation(ConversationBase):
    """A conversation over a `Client`; one thread at a time, but for the `cancel` of an answer.

    Example::

        talk = client.conversation(system="You are Ada.")
        for chunk in microphone:
            talk.append_audio(chunk, sample_rate=48_000)
        with talk.respond() as answer:
            for event in answer: ...

    Args:
        client: stays open.
        timeout_s: deadline of each answer.
        headers: sent with every request.
        fields: of every request (`mode`, `task`, ...); `system` (who answers, and how) goes with the first one.
            `history_overflow` is "drop" unless given: of a conversation that has become too long, the oldest turns go.

    Raises:
        InvalidRequest: a field that the conversation sets itself.
    """

    _reading: Stream | None = None

    def append_audio(self, samples: NDArray[np.generic], sample_rate: int = INPUT_SAMPLE_RATE_HZ) -> None:
        """Add speech to the turn, as it comes: floats in [-1, 1], int16 or int32, [samples] or [samples, channels].

        Raises:
            InvalidRequest: an answer is still coming, the samples are wrong, or the turn has more than 120 s.
        """
        self._turns.append_audio(samples, sample_rate)
        if request := self._turns.read_ahead():
            self._finish_reading()
            with contextlib.suppress(VitaError):
                self._reading = self._client.send(request, timeout_s=self._timeout_s, headers=self._headers)

    def respond(self, text: str | None = None, **fields: Unpack[RequestFields]) -> Stream:
        """The turn is complete: its answer. At its end, also by `cancel`, what came of it is part of the conversation.

        Args:
            text: added to what was appended. `fields`: for this request only.

        Raises:
            InvalidRequest: an answer is still coming, there is nothing to answer, or a field is wrong.
        """
        request = self._turns.respond(text, **fields)
        try:
            self._finish_reading()
            return self._client.send(request, timeout_s=self._timeout_s, headers=self._headers, turns=self._turns)
        except BaseException:
            self._turns.end()
            raise

    def _finish_reading(self) -> None:
        """The slot that reads ahead must be free before a prompt can go on in it."""
        reading, self._reading = self._reading, None
        if reading is not None:
            with contextlib.suppress(VitaError):
                reading.collect()


class AsyncConversation(ConversationBase):
    """As `Conversation`, over an `AsyncClient`, in its loop."""

    _reading: asyncio.Task[object] | None = None

    async def append_audio(self, samples: NDArray[np.generic], sample_rate: int = INPUT_SAMPLE_RATE_HZ) -> None:
        """As `Conversation.append_audio`."""
        self._turns.append_audio(samples, sample_rate)
        if request := self._turns.read_ahead():
            await self._finish_reading()
            with contextlib.suppress(VitaError):
                stream = self._client.send(request, timeout_s=self._timeout_s, headers=self._headers)
                self._reading = asyncio.ensure_future(stream.collect())

    async def respond(self, text: str | None = None, **fields: Unpack[RequestFields]) -> AsyncStream:
        """As `Conversation.respond`."""
        request = self._turns.respond(text, **fields)
        try:
            await self._finish_reading()
            return self._client.send(request, timeout_s=self._timeout_s, headers=self._headers, turns=self._turns)
        except BaseException:
            self._turns.end()
            raise

    def stop_reading(self) -> None:
        """Read ahead no more of the turn, also on the server: for a conversation that is left in the middle of one."""
        reading, self._reading = self._reading, None
        if reading is not None and not reading.cancel() and not reading.cancelled():
            reading.exception()  # nothing else asks for it, and asyncio would report it as forgotten

    async def _finish_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            with contextlib.suppress(VitaError):
                await reading
