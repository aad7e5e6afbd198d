"""A conversation with the model: what was said and not answered yet, the answer that is coming, what was heard of it.

Knows the client's `AsyncConversation` and samples at 16 kHz; no events, no formats, no turn-taking. Speech is given to
the conversation while it is spoken, so that the server reads it ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gateway.realtime.playout import Playout
from gateway.realtime.turn_taking import RATE_HZ
from vita_audio.contract.errors import InvalidRequest, VitaError
from vita_audio.contract.fields import RequestFields
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_client import AsyncClient, AsyncConversation, AsyncStream, Event, ServerUnavailable, TextDelta
from vita_client.channel import DEFAULT_TIMEOUT_S
from vita_client.request import past_speech

#: Gives a client for one answer; where it can the one given, of the answer before.
Connect = Callable[[AsyncClient | None], AbstractAsyncContextManager[AsyncClient]]
Speech = NDArray[np.float32]
_MAX_SPEECH_SAMPLES = int(MAX_AUDIO_SECONDS * RATE_HZ)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Something that was said and waits for an answer: text, or speech float32 [samples] at 16 kHz."""

    item_id: str
    text: str = ""
    speech: Speech = field(default_factory=lambda: np.zeros(0, np.float32))
    role: str = "user"


@dataclass(frozen=True, slots=True)
class Wish:
    """How to answer. `instructions`: for this answer. `text_only`: its sound is not wanted. `max_tokens` None: the
    server's default. `drop_oldest`: of a conversation that is too long; else it is refused.
    """

    instructions: str = ""
    max_tokens: int | None = None
    text_only: bool = False
    drop_oldest: bool = True


class Answer:
    """An answer that is coming: its events, and what was heard of its sound."""

    def __init__(self, stream: AsyncStream, lease: AsyncExitStack, at_end: Callable[[], None]) -> None:
        self.stream, self.playout = stream, Playout()
        self._lease, self._at_end = lease, at_end

    async def events(self) -> AsyncIterator[Event]:
        """Until it is complete or cancelled. Raises VitaError: the server failed."""
        try:
            async with self._lease:  # an error shows it that the server failed
                async for event in self.stream:
                    yield event
        finally:
            self._at_end()

    def cancel(self) -> None:
        """Stop it on the server; what came of it is part of the conversation. May be called more than once."""
        self.stream.cancel()
        self._at_end()

    async def close(self) -> None:
        """At the end, however it came."""
        self.cancel()
        await self._lease.aclose()


class Talk:
    """One conversation; used by the tasks of one loop.

    Args:
        connect: gives a client, of another server where the last one is lost or full.
        system: who answers, and how; empty for the checkpoint's own.
        mode: how answers are decoded; None for the server's default.
        ready: how many servers `connect` has a client of.
        timeout_s: of each answer.
    """

    def __init__(
        self,
        connect: Connect,
        system: str = "",
        mode: str | None = None,
        ready: Callable[[], int] = lambda: 0,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._connect, self._system, self._mode, self._ready = connect, system, mode, ready
        self._timeout_s = timeout_s
        self._next_system: str | None = None  # of what was changed during the first answer
        self._client: AsyncClient | None = None
        self._conversation: AsyncConversation | None = None
        self._history: tuple[int, ...] = ()
        self._clips: tuple[Speech, ...] = ()  # what a Plus checkpoint wants with it
        self._heard_tokens: int | None = None  # of its last answer, where that was interrupted
        self._parts: list[Part] = []
        self._open: list[Speech] = []  # of the turn that is being spoken
        self._not_given: list[Speech] = []  # to `_conversation`; empty while that is stale
        self._stale = False  # what `_conversation` was given is no longer what was said
        self._answering: object | None = None  # of the answer that is coming
        self._giving: asyncio.Task[None] | None = None

    @property
    def history(self) -> tuple[int, ...]:
        """The ids of all turns that have an answer."""
        return self._history if self._conversation is None else self._conversation.history

    def moves_after(self, error: VitaError) -> bool:
        """Whether the next answer comes from another server than the one that failed with this error."""
        left = isinstance(error, ServerUnavailable) and error.code != "server_full"
        return left and self._ready() > 0

    def set_system(self, system: str) -> None:
        """Who answers, and how. A conversation that has begun gets it with its next turn."""
        if self._answering and not self.history:
            self._next_system = system  # the end of this answer shows whether the conversation has begun
        elif system != self._system:
            self._system = system
            if not self.history:
                self._leave()
            elif system:
                self.say("", system, "system")

    def say(self, item_id: str, text: str, role: str = "user") -> None:
        """Add text to what is to be answered; `role` is who said it."""
        self._parts.append(Part(item_id, text, role=role))

    def hear(self, at: int, speech: Speech) -> None:
        """More of a turn of speech, from its sample `at` on: it is read ahead; `commit` or `forget` ends the turn.

        A turn whose beginning did not come is not read ahead.
        """
        if at == sum(map(len, self._open)):
            self._open.append(speech)
            self._add_not_given(speech)
            self._give()

    def forget(self) -> None:
        """What `hear` was given is no part of the conversation."""
        if self._open:
            self._open = []
            self._is_stale()

    def commit(self, item_id: str, speech: Speech) -> None:
        """A whole turn of speech; what `hear` was given is its beginning. Of all that waits the last 120 s count."""
        heard, self._open = sum(map(len, self._open)), []
        self._add_not_given(speech[heard:])
        self._add(Part(item_id, speech=speech))

    def say_speech(self, item_id: str, speech: Speech) -> None:
        """Add speech to what is to be answered, apart from what is being spoken."""
        self._is_stale()
        self._add(Part(item_id, speech=speech))

    def _add(self, part: Part) -> None:
        self._parts.append(part)
        while sum(len(part.speech) for part in self._parts) > _MAX_SPEECH_SAMPLES:
            oldest = next(part for part in self._parts if len(part.speech))
            self._parts.remove(oldest)
            self._is_stale()

    def _add_not_given(self, speech: Speech) -> None:
        if not self._stale:
            self._not_given.append(speech)

    def _is_stale(self) -> None:
        self._not_given, self._stale = [], True

    def remove(self, item_id: str) -> bool:
        """Take back what was said and has no answer; whether it was there."""
        left = [part for part in self._parts if part.item_id != item_id]
        if removed := len(left) < len(self._parts):
            self._parts = left
            self._is_stale()
        return removed

    def heard(self, seconds: float) -> None:
        """Of the last answer only the first `seconds` were heard. Raises InvalidRequest: there is no last answer."""
        if self._conversation is None:
            raise InvalidRequest("HEARD", seconds, "there is no answer yet")
        self._conversation.heard(seconds)

    async def respond(self, wish: Wish) -> Answer:
        """The answer to everything that waits.

        Raises:
            VitaError: there is nothing to answer, it is too long, or there is no server.
        """
        if self._giving is not None:
            await asyncio.wait({self._giving})
        lease = AsyncExitStack()
        conversation = self._over(await lease.enter_async_context(self._connect(self._client)))
        parts, before, this_answer = list(self._parts), conversation.history, object()

        def at_end() -> None:
            if self._answering is this_answer:  # it is called more than once, also when the next answer is coming
                self._answering = None
                self._is_stale()
                if conversation.history is not before:
                    self._parts = [part for part in self._parts if part not in parts]
                if (system := self._next_system) is not None:
                    self._next_system = None
                    self.set_system(system)
                self._give()

        try:
            text, speech, fields = self._asked(parts, wish, bool(before))
            if self._stale or self._open or self._not_given:
                conversation.clear()
                self._is_stale()
                if len(speech):
                    fields["audio"], fields["sample_rate"] = speech, RATE_HZ
            self._answering = this_answer
            return Answer(await conversation.respond(text, **fields), lease, at_end)
        except BaseException:
            at_end()
            await lease.aclose()
            raise

    async def aside(self, wish: Wish, parts: Sequence[Part] | None) -> Answer:
        """An answer that does not become part of the conversation: to `parts` alone, or (None) to the conversation."""
        history = self.history if parts is None else ()
        text, speech, fields = self._asked(self._parts if parts is None else parts, wish, bool(history))
        if history:
            before = self._conversation
            clips, heard = (self._clips, self._heard_tokens) if before is None else (before.clips, before.heard_tokens)
            fields["history"], fields["heard"] = history, heard
            fields.update(past_speech(clips))
        fields["system"] = None if history else wish.instructions or self._system or None
        if len(speech):
            fields["audio"], fields["sample_rate"] = speech, RATE_HZ
        lease = AsyncExitStack()
        client = await lease.enter_async_context(self._connect(self._client))
        try:
            return Answer(client.stream(text, timeout_s=self._timeout_s, **fields), lease, lambda: None)
        except BaseException:
            await lease.aclose()
            raise

    async def transcribe(self, speech: Speech) -> AsyncIterator[str]:
        """The words of `speech`, piece by piece. Raises VitaError."""
        async with (
            self._connect(self._client) as client,
            client.stream(task="asr", audio=speech, sample_rate=RATE_HZ, timeout_s=self._timeout_s) as stream,
        ):
            async for event in stream:
                if isinstance(event, TextDelta):
                    yield event.text

    async def close(self) -> None:
        """Read nothing ahead any more; answers must be closed before."""
        if self._giving is not None:
            self._giving.cancel()
            await asyncio.wait({self._giving})
        self._leave()

    def _asked(self, parts: Sequence[Part], wish: Wish, begun: bool) -> tuple[str | None, Speech, RequestFields]:
        """Text, speech and fields of a request; `begun`: it has a history, and with it who answers."""
        earlier, parts = ("", parts) if begun else _in_words(parts)
        speech = np.concatenate([np.zeros(0, np.float32), *(part.speech for part in parts)])
        texts = _texts(parts)
        fields: RequestFields = {
            "messages": earlier or None,
            "history_overflow": "drop" if wish.drop_oldest else "error",
            "max_tokens": wish.max_tokens,
            "mode": self._mode,
        }
        if wish.instructions and wish.instructions != self._system:
            if begun or not (texts or len(speech)):
                texts.append(wish.instructions)
            else:
                fields["system"] = wish.instructions
        if wish.text_only and not len(speech):
            fields["task"] = "text"
        if not texts and not len(speech):
            raise InvalidRequest("input", "nothing", "there is nothing to answer", "say or write something first")
        return " ".join(texts) or None, speech, fields

    def _over(self, client: AsyncClient) -> AsyncConversation:
        """The conversation, over this client from now on."""
        if client is not self._client:
            self._client = client
            self._leave()
        if self._conversation is None:
            self._conversation = client.conversation(system=self._system or None, timeout_s=self._timeout_s)
            self._conversation.resume(self._history, self._clips, self._heard_tokens)
            self._is_stale()
        return self._conversation

    def _leave(self) -> None:
        """Another conversation goes on from the history of this one."""
        if self._conversation is not None:
            self._history, self._clips = self._conversation.history, self._conversation.clips
            self._heard_tokens = self._conversation.heard_tokens
            self._conversation.stop_reading()
            self._conversation = None

    def _give(self) -> None:
        """Give the conversation what is new, in a task of its own: it may wait for the server."""
        if not self._answering and (self._giving is None or self._giving.done()):
            self._giving = asyncio.create_task(self._append())

    async def _append(self) -> None:
        """Reading ahead only saves time: where it fails, the answer is the same."""
        with contextlib.suppress(VitaError):
            if self._client is None:
                async with self._connect(None) as client:
                    self._over(client)
            assert self._client is not None
            conversation = self._over(self._client)
            while not self._answering and conversation is self._conversation:
                if self._stale:
                    conversation.clear()
                    self._not_given, self._stale = [*(part.speech for part in self._parts), *self._open], False
                speech = np.concatenate([np.zeros(0, np.float32), *self._not_given])
                if not len(speech) or conversation.seconds + len(speech) / RATE_HZ > MAX_AUDIO_SECONDS:
                    return
                self._not_given = []
                try:
                    await conversation.append_audio(speech, RATE_HZ)
                except BaseException:
                    self._is_stale()
                    raise


def _in_words(parts: Sequence[Part]) -> tuple[str, Sequence[Part]]:
    """An earlier conversation that was brought along in text, as MESSAGES; and what is left to be answered.

    What else is there of it (speech, what the assistant said first, nothing after its last word) goes with the turn.
    """
    answers = [place for place, part in enumerate(parts) if part.role == "assistant" and part.text.strip()]
    end = answers[-1] + 1 if answers else 0
    turns: list[dict[str, str]] = []
    left: list[Part] = []
    for part in parts[:end]:
        if part.role == "system" or not part.text.strip():
            left.append(part)
        elif turns and turns[-1]["role"] == part.role:
            turns[-1]["content"] += f"\n{part.text}"
        else:
            turns.append({"role": part.role, "content": part.text})
    whole = turns and turns[0]["role"] == "user" and end < len(parts) and not any(len(part.speech) for part in left)
    return (json.dumps(turns), [*left, *parts[end:]]) if whole else ("", parts)


def _texts(parts: Sequence[Part]) -> list[str]:
    """What was written; where the assistant's words are among it, with who said what."""
    names = {"user": "User: ", "assistant": "Assistant: "} if any(part.role == "assistant" for part in parts) else {}
    return [names.get(part.role, "") + part.text for part in parts if part.text]
