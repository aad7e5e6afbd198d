"""The Realtime protocol of one session: a client's events in, the server's events out.

Turn-taking (`listening.py`), conversation (`talk.py`) and responses (`answering.py`) meet here and know nothing of each
other's insides. What each event does: docs/gateway.md, "Realtime".
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.access import Use
from gateway.errors import body_of
from gateway.realtime import events
from gateway.realtime.answering import Answering
from gateway.realtime.events import EventError, Message, ResponseParams, error_event, event, new_id
from gateway.realtime.formats import read_speech
from gateway.realtime.items import Item, Items, created_item, speech_item
from gateway.realtime.listening import Began, Broken, Ended, Goes, Listener, Speech
from gateway.realtime.outbox import Outbox
from gateway.realtime.responses import Terms
from gateway.realtime.session import AudioInput, AudioOutput, RealtimeSession, Session, updated
from gateway.realtime.talk import Part, Talk, Wish
from gateway.realtime.turn_taking import RATE_HZ
from vita_audio.contract.errors import VitaError
from vita_audio.contract.limits import MAX_AUDIO_SECONDS

#: Transcriptions at a time; one more fails.
MAX_TRANSCRIPTIONS = 8
_OUTPUT: TypeAdapter[AudioOutput] = TypeAdapter(AudioOutput)


class Protocol:
    """One session.

    Args:
        session: as it begins.
        talk: its conversation. Closed by `close`.
        outbox: takes the server's events.
        use: of the caller's key.
    """

    def __init__(self, session: Session, talk: Talk, outbox: Outbox, use: Use) -> None:
        self._session, self._talk, self._outbox = session, talk, outbox
        self._conversation_id = new_id("conv")
        self._items = Items()
        self._listener = Listener(session.audio.input)
        self._answering = Answering(talk, self._items, outbox, use, self._wait_for_speech)
        self._speech_item_id = new_id("item")  # of the turn that is being spoken, or the next one
        self._transcriptions: set[asyncio.Task[None]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._idle_from_ms = 0
        self._closed = False

    def open(self) -> None:
        """Greet the client."""
        self._outbox.put(event("session.created", session=self._session.model_dump()))

    async def handle(self, text: str | bytes) -> None:
        """One message of the client. What is wrong with it becomes an `error` event."""
        received = None
        try:
            received = events.read_event(text)
            await self._handle(received)
        except EventError as error:
            self._outbox.put(error_event(error, received.event_id if received else events.event_id_of(text)))

    @property
    def busy(self) -> bool:
        """Whether an answer is being made, what was said written down, or something of it still waits to be sent."""
        return self._answering.busy or bool(self._transcriptions) or not self._outbox.empty

    async def close(self) -> None:
        """The client is gone: end everything on the server."""
        self._closed = True
        self._stop_waiting()
        await self._answering.close()
        for task in self._transcriptions:
            task.cancel()
        await asyncio.gather(*self._transcriptions, return_exceptions=True)
        await self._talk.close()

    async def _handle(self, received: events.AnyClientEvent) -> None:
        match received:
            case events.SessionUpdate():
                self._update(received.session)
            case events.Append():
                await self._append(_decoded(received.audio, "audio"))
            case events.Commit():
                self._commit(self._listener.commit())
            case events.Clear():
                self._listener.clear()
                self._talk.forget()
                self._outbox.put(event("input_audio_buffer.cleared"))
            case events.ItemCreate():
                self._create_item(received.item, received.previous_item_id)
            case events.ItemRetrieve():
                self._outbox.put(event("conversation.item.retrieved", item=self._items.get(received.item_id)))
            case events.ItemTruncate():
                self._answering.truncate(received.item_id, received.audio_end_ms / 1000)
            case events.ItemDelete():
                self._delete_item(received.item_id)
            case events.ResponseCreate():
                self._respond(received.response or ResponseParams())
            case events.ResponseCancel():
                self._answering.cancel(received.response_id)
            case events.OutputClear():
                raise EventError("it is for WebRTC; send response.cancel", "unknown_event", "type")

    # The session

    def _update(self, changes: dict[str, Any]) -> None:
        try:
            self._session = updated(self._session, changes)
        except ValidationError as error:
            raise events.wrong_field(error, "session") from error
        if self._listener.configure(self._session.audio.input):
            self._talk.forget()
        if isinstance(self._session, RealtimeSession):
            self._talk.set_system(_words(self._session.instructions))
        self._wait_for_speech()
        self._outbox.put(event("session.updated", session=self._session.model_dump()))

    @property
    def _input(self) -> AudioInput:
        return self._session.audio.input

    @property
    def _reads_ahead(self) -> bool:
        """Whether what is being spoken is likely to be answered."""
        detection = self._input.turn_detection
        return isinstance(self._session, RealtimeSession) and (detection is None or detection.create_response)

    # What the user says

    async def _append(self, sound: bytes) -> None:
        for found in self._listener.append(sound):
            match found:
                case None:
                    await asyncio.sleep(0)
                case Began():
                    self._begin_turn(found.at_ms)
                case Goes():
                    if self._reads_ahead:
                        self._talk.hear(found.at, found.speech)
                case Broken():
                    self._talk.forget()
                case Ended():
                    self._end_turn(found)

    def _begin_turn(self, at_ms: int) -> None:
        self._stop_waiting()
        detection = self._input.turn_detection
        self._outbox.put(event("input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=self._speech_item_id))
        if detection is not None and detection.interrupt_response:
            self._answering.interrupt()

    def _end_turn(self, turn: Ended) -> None:
        detection = self._input.turn_detection
        self._outbox.put(
            event("input_audio_buffer.speech_stopped", audio_end_ms=turn.at_ms, item_id=self._speech_item_id)
        )
        self._commit(turn.speech)
        if detection is not None and detection.create_response and isinstance(self._session, RealtimeSession):
            try:
                self._respond(ResponseParams())
            except EventError as error:
                self._outbox.put(error_event(error, None))

    def _commit(self, speech: Speech) -> None:
        """What was spoken becomes an item of the conversation."""
        item_id, self._speech_item_id = self._speech_item_id, new_id("item")
        self._outbox.put(event("input_audio_buffer.committed", previous_item_id=self._items.last_id, item_id=item_id))
        self._add(speech_item(item_id))
        if isinstance(self._session, RealtimeSession):
            self._talk.commit(item_id, speech)
        self._transcribe(item_id, 0, speech)

    def _transcribe(self, item_id: str, index: int, speech: Speech) -> None:
        if self._input.transcription is not None:
            task = asyncio.create_task(self._write_down(item_id, index, speech))
            self._transcriptions.add(task)
            task.add_done_callback(self._transcriptions.discard)

    async def _write_down(self, item_id: str, index: int, speech: Speech) -> None:
        """What was said, in words, as the client asked for; a failure is an event and changes nothing else."""
        kind = "conversation.item.input_audio_transcription"
        place, words = {"item_id": item_id, "content_index": index}, ""
        try:
            if len(self._transcriptions) > MAX_TRANSCRIPTIONS:
                raise VitaError("too many transcriptions are being made; commit less often", code="rate_limit_exceeded")
            async for delta in self._talk.transcribe(speech):
                words += delta
                self._outbox.put(event(f"{kind}.delta", **place, delta=delta))
        except VitaError as error:
            self._outbox.put(event(f"{kind}.failed", **place, error=body_of(error)["error"]))
            return
        words = words.strip()
        self._items.set_transcript(item_id, index, words)
        usage = {"type": "duration", "seconds": round(len(speech) / RATE_HZ, 3)}
        self._outbox.put(event(f"{kind}.completed", **place, transcript=words, usage=usage))

    # Items

    def _add(self, item: Item, previous_id: str | None = None) -> None:
        previous = self._items.add(item, previous_id)
        for kind in ("added", "done"):
            self._outbox.put(event(f"conversation.item.{kind}", previous_item_id=previous, item=item))

    def _create_item(self, message: Message, previous_id: str | None) -> None:
        if not isinstance(self._session, RealtimeSession):
            raise EventError("a transcription session has no items of its own; append sound", "invalid_value", "type")
        item = created_item(message)
        parts = self._parts_of(message, item["id"])
        self._add(item, previous_id)
        for index, part in enumerate(parts):
            if len(part.speech):
                self._talk.say_speech(part.item_id, part.speech)
                self._transcribe(part.item_id, index, part.speech)
            elif part.text:
                self._talk.say(part.item_id, part.text, part.role)

    def _delete_item(self, item_id: str) -> None:
        item = self._items.get(item_id)
        known = self._talk.remove(item_id) or self._answering.forget(item_id)
        if not known and isinstance(self._session, RealtimeSession) and item["content"]:
            message = f"item_id: {item_id} was answered: the model remembers it; only the last answer can be deleted"
            raise EventError(message, "item_delete_not_possible", "item_id")
        self._items.remove(item_id)
        self._outbox.put(event("conversation.item.deleted", item_id=item_id))

    def _parts_of(self, message: Message, item_id: str) -> list[Part]:
        """What the model is given of a message. Raises EventError: its sound cannot be read, or is too long."""
        parts, seconds = list[Part](), 0.0
        for index, content in enumerate(message.content):
            if content.audio and content.type == "input_audio":
                place = f"item.content.{index}.audio"
                speech = read_speech(_decoded(content.audio, place), self._input.format.type)
                if (seconds := seconds + len(speech) / RATE_HZ) > MAX_AUDIO_SECONDS:
                    limit = f"a turn has at most {MAX_AUDIO_SECONDS:g} s"
                    raise EventError(f"{place}: {seconds:.1f} s of speech; {limit}", "invalid_value", place)
                parts.append(Part(item_id, speech=speech))
            else:
                parts.append(Part(item_id, content.text or content.transcript or "", role=message.role))
        return parts

    # Responses

    def _respond(self, params: ResponseParams) -> None:
        session = self._session
        if not isinstance(session, RealtimeSession):
            raise EventError("a transcription session has no responses", "invalid_value", "type")
        self._stop_waiting()
        aside = params.conversation == "none"
        if params.input is not None and not aside:
            message = 'response.input: a response with an input of its own needs conversation "none"'
            raise EventError(message, "invalid_value", "response.input")
        output = self._output(session, params)
        most = params.max_output_tokens or session.max_output_tokens
        modality = (params.output_modalities or session.output_modalities)[0]
        terms = Terms(
            conversation_id=None if aside else self._conversation_id,
            modality=modality,
            max_output_tokens=most,
            audio_format=output.format.model_dump(),
            voice=output.voice,
            speed=output.speed,
            metadata=params.metadata,
        )
        wish = Wish(
            instructions=_words(params.instructions),
            max_tokens=None if most == "inf" else int(most),
            text_only=modality == "text",
            drop_oldest=session.truncation != "disabled",
        )
        if aside:
            self._answering.create_aside(terms, wish, self._inputs(params))
        else:
            self._answering.create(terms, wish)

    def _output(self, session: RealtimeSession, params: ResponseParams) -> AudioOutput:
        changes = (params.audio or {}).get("output") or {}
        try:
            return _OUTPUT.validate_python({**session.audio.output.model_dump(), **changes})
        except (ValidationError, TypeError) as error:
            if isinstance(error, ValidationError):
                raise events.wrong_field(error, "response.audio.output") from error
            raise EventError(
                "response.audio.output: it is an object", "invalid_type", "response.audio.output"
            ) from error

    def _inputs(self, params: ResponseParams) -> Sequence[Part] | None:
        if params.input is None:
            return None
        parts: list[Part] = []
        for given in params.input:
            if isinstance(given, Message):
                parts += self._parts_of(given, "")
            else:
                item = self._items.get(given.id, "response.input")
                words = [part.get("text") or part.get("transcript") or "" for part in item["content"]]
                parts += [Part("", text, role=item["role"]) for text in words]
        return parts

    # Silence

    def _wait_for_speech(self) -> None:
        """An answer is over or cut, or the session changed: the user is expected to say something."""
        self._stop_waiting()
        detection = self._input.turn_detection
        answers = isinstance(self._session, RealtimeSession)
        if self._closed or not answers or detection is None or not detection.idle_timeout_ms:
            return
        if self._answering.active or self._listener.speaking:
            return
        playing_s = self._answering.playing_s()
        self._idle_from_ms = self._listener.position_ms + int(playing_s * 1000)
        delay_s = playing_s + detection.idle_timeout_ms / 1000
        self._idle = asyncio.get_running_loop().call_later(delay_s, self._speech_missing)

    def _stop_waiting(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _speech_missing(self) -> None:
        """Nothing was said for `idle_timeout_ms`: the silence is answered."""
        self._idle = None
        if self._listener.speaking or self._answering.active:
            return
        end_ms = self._listener.position_ms
        start_ms = min(self._idle_from_ms, end_ms)
        self._outbox.put(
            event(
                "input_audio_buffer.timeout_triggered",
                audio_start_ms=start_ms,
                audio_end_ms=end_ms,
                item_id=self._speech_item_id,
            )
        )
        self._commit(self._listener.silence(0.5))
        try:
            self._respond(ResponseParams())
        except EventError as error:
            self._outbox.put(error_event(error, None))


def _words(instructions: str | None) -> str:
    """Instructions, empty where they are white space only: the server refuses those."""
    return instructions if instructions and instructions.strip() else ""


def _decoded(audio: str, param: str) -> bytes:
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EventError(f"{param}: it is not base64", "invalid_value", param) from error
