"""The responses of a session: the one that is part of the conversation, those aside, and what was heard of the last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from gateway.access import Use
from gateway.errors import body_of
from gateway.realtime.events import EventError, event
from gateway.realtime.formats import SoundWriter
from gateway.realtime.items import MAX_ITEMS, Items
from gateway.realtime.outbox import NotRead, Outbox
from gateway.realtime.responses import Response, Terms
from gateway.realtime.talk import Answer, Part, Talk, Wish
from vita_audio.contract.errors import VitaError
from vita_client import Pcm, TextDelta

#: Responses outside the conversation, at a time.
MAX_ASIDES = 4
#: Sound goes out in pieces of this length at most, so that little of it is under way when it is interrupted.
_PIECE_SAMPLES = 11_025
#: A listener says in whole milliseconds, rounded either way, how much was heard.
_ROUNDING_S = 0.001
_LOG = logging.getLogger(__name__)


class _Running:
    """A response, and the answer of the model that it is made of."""

    def __init__(self, response: Response, task: asyncio.Task[None] | None = None) -> None:
        self.response, self.task = response, task
        self.answer: Answer | None = None
        self.sound_s = math.inf  # of the whole answer, once it is complete

    def sent_s(self) -> float:
        return 0.0 if self.answer is None else self.answer.playout.sent_s

    def cancel(self, reason: str) -> None:
        """The client gets its end at once; the server stops."""
        if self.answer is not None:
            self.response.cancel(reason, self.answer.stream)
            self.answer.cancel()
        else:
            self.response.cancel(reason, None)
            assert self.task is not None
            self.task.cancel()


class Answering:
    """Makes responses and ends them.

    Args:
        use: what the caller's key has left, and what is used of it.
        at_end: called when a response of the conversation is over, or its sound is cut.
    """

    def __init__(
        self,
        talk: Talk,
        items: Items,
        outbox: Outbox,
        use: Use,
        at_end: Callable[[], None],
    ) -> None:
        self._talk, self._items, self._outbox, self._use = talk, items, outbox, use
        self._at_end = at_end
        self._active: _Running | None = None
        self._asides: dict[str, _Running] = {}
        self._last: _Running | None = None  # the last answer that the model's memory has
        self._sent_s: dict[str, float] = {}  # by item, of those with sound; less what was cut off
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> bool:
        """Whether a response of the conversation is being made."""
        return self._active is not None

    @property
    def busy(self) -> bool:
        """Whether any response is being made, of the conversation or beside it."""
        return self.active or bool(self._asides)

    def playing_s(self) -> float:
        """How much of what was sent is still to be heard."""
        answer = None if self._last is None else self._last.answer
        return 0.0 if answer is None else answer.playout.remaining_s(time.monotonic())

    def create(self, terms: Terms, wish: Wish) -> None:
        """A response to what waits for one. Raises EventError: there is one already."""
        if self._active is not None:
            message = f"the conversation has an active response already: {self._active.response.id}; cancel it, or wait"
            raise EventError(message, "conversation_already_has_active_response")
        self._active = self._start(terms, lambda: self._talk.respond(wish))

    def create_aside(self, terms: Terms, wish: Wish, parts: Sequence[Part] | None) -> None:
        """A response to `parts`, or (None) to the conversation, that does not become part of it."""
        if len(self._asides) >= MAX_ASIDES:
            message = f"{MAX_ASIDES} responses outside the conversation are being made; wait for one of them"
            raise EventError(message, "rate_limit_exceeded")
        running = self._start(terms, lambda: self._talk.aside(wish, parts))
        self._asides[running.response.id] = running

    def cancel(self, response_id: str | None) -> None:
        """The client wants no more of a response. Raises EventError: there is no such response."""
        chosen = self._active
        if response_id is not None and (chosen is None or chosen.response.id != response_id):
            chosen = self._asides.get(response_id)
        if chosen is None:
            raise EventError("Cancellation failed: no active response found", "response_cancel_not_active")
        chosen.cancel("client_cancelled")
        self._over(chosen)

    def interrupt(self) -> None:
        """The user speaks: the response ends, and only what was heard of it is part of the conversation."""
        if (active := self._active) is not None:
            active.cancel("turn_detected")
            self._over(active)
        if self.playing_s() and (last := self._last) is not None and last.answer is not None:
            heard_s = last.answer.playout.heard_s(time.monotonic())
            if last.response.item_id in self._items:
                self.truncate(last.response.item_id, heard_s)
            else:
                self._cut(last, heard_s)

    def truncate(self, item_id: str, heard_s: float) -> None:
        """Of an answer only the first seconds were heard.

        Only the last answer can still be cut: of an older one the event says what holds.

        Raises:
            EventError: there is no such answer, or it has no sound.
        """
        item = self._items.get(item_id)
        if item_id not in self._sent_s:
            raise EventError("item_id: only an answer with sound can be truncated", "invalid_value", "item_id")
        if self._last is not None and self._last.response.item_id == item_id:
            self._cut(self._last, heard_s)
            self._sent_s[item_id] = min(heard_s, self._sent_s[item_id])
            item["content"] = [{**part, "transcript": ""} for part in item["content"]]
        end_ms = int(self._sent_s[item_id] * 1000)
        self._outbox.put(event("conversation.item.truncated", item_id=item_id, content_index=0, audio_end_ms=end_ms))

    def forget(self, item_id: str) -> bool:
        """Nothing of the last answer was heard; False: the item is not the last answer."""
        if self._last is None or self._last.response.item_id != item_id:
            return False
        self._cut(self._last, 0.0)
        return True

    async def close(self) -> None:
        """End everything on the server; nothing is sent."""
        for running in (self._active, *self._asides.values()):
            if running is not None and running.answer is not None:
                running.answer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _cut(self, last: _Running, heard_s: float) -> None:
        """Of the last answer no more was heard, nor will be; never more than an earlier cut has left."""
        heard_s = min(heard_s, last.sent_s())
        whole = 0 < last.sound_s <= heard_s + _ROUNDING_S
        if last.answer is not None:
            last.answer.playout.stop(heard_s)
        self._outbox.discard(last.response.id)
        if last is self._active:
            last.cancel("client_cancelled")
            self._over(last)
        else:
            self._at_end()  # its sound ends now
        if not whole:
            with contextlib.suppress(VitaError):  # the model's memory has nothing of it
                self._talk.heard(heard_s * last.response.terms.speed)

    def _start(self, terms: Terms, ask: Callable[[], Awaitable[Answer]]) -> _Running:
        running = _Running(Response(terms, self._outbox, self._items))
        running.task = asyncio.create_task(self._answer(running, ask))
        self._tasks.add(running.task)
        running.task.add_done_callback(self._tasks.discard)
        return running

    async def _answer(self, running: _Running, ask: Callable[[], Awaitable[Answer]]) -> None:
        response = running.response
        try:
            self._use.check()
            running.answer = await ask()
            async for _ in self._told(running, running.answer):
                await self._outbox.room()
            if not response.finished:
                response.complete(running.answer.stream)
        except VitaError as error:
            if not response.finished:
                refused = body_of(error)["error"]
                moved = "; the next response comes from another server" if self._talk.moves_after(error) else ""
                response.fail(refused["type"], refused["code"], refused["message"] + moved)
        except NotRead:
            pass  # what sends ends the connection
        except Exception:  # noqa: BLE001 - the client must be told, whatever it was
            _LOG.exception("a response failed")
            if not response.finished:
                response.fail("server_error", "internal_error", "internal error of the gateway; its log says more")
        finally:
            if running.answer is not None:
                await running.answer.close()
            self._over(running)

    async def _told(self, running: _Running, answer: Answer) -> AsyncIterator[None]:
        """Send what the model says; yields after each event."""
        response, terms = running.response, running.response.terms
        in_conversation = terms.conversation_id is not None
        writer, made_s = SoundWriter(terms.audio_format["type"], terms.speed), 0.0

        def send(sound: bytes) -> None:
            nonlocal made_s
            made_s += (seconds := writer.seconds(sound))

            def on_sent() -> None:
                now_s = time.monotonic()
                answer.playout.sent(seconds, now_s)
                self._use.sound(seconds)
                if in_conversation:
                    self._sent_s[response.item_id] = answer.playout.sent_s
                    if len(self._sent_s) > MAX_ITEMS:
                        del self._sent_s[next(iter(self._sent_s))]

            if sound:
                response.sound(sound, on_sent)

        async for said in answer.events():
            if response.finished:
                return
            if in_conversation:
                self._last = running
            if isinstance(said, TextDelta):
                response.text(said.text)
            elif isinstance(said, Pcm) and terms.modality == "audio":
                for at in range(0, len(said.samples), _PIECE_SAMPLES):
                    send(writer.write(said.samples[at : at + _PIECE_SAMPLES]))
            yield
        if not response.finished:
            send(writer.finish())
            running.sound_s = made_s

    def _over(self, running: _Running) -> None:
        self._asides.pop(running.response.id, None)
        if running is self._active:
            self._active = None
            self._at_end()
