"""`POST /v1/chat/completions`: text, and sound in and out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, field_validator

from gateway.context import caller, gateway_of
from gateway.http.speech import Voice
from gateway.http.streams import event_stream, while_connected
from gateway.sound.decode import decode
from gateway.sound.encode import Encoder
from gateway.voices import VOICE, check_model, check_voice, mode_of
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import AsyncClient, AsyncStream, Event, Pcm, TextDelta, TokensDelta

router = APIRouter(tags=["chat"])


class InputAudio(BaseModel):
    """`format` is not needed: the file says it."""

    data: str
    format: str = "wav"


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class AudioPart(BaseModel):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioReference(BaseModel):
    """An earlier spoken answer: none is stored, so its transcript has to be sent as content."""

    id: str = Field(max_length=64)


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | AudioPart, Field(discriminator="type")]] | None = None
    audio: AudioReference | None = None


class AudioParams(BaseModel):
    voice: Voice = VOICE
    format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm16"] = "wav"


class StreamOptions(BaseModel):
    include_usage: bool = False


class ResponseFormat(BaseModel):
    type: Literal["text"]


class ChatRequest(BaseModel):
    """Fields that are not here (tools, penalties, ...) are taken and change nothing; what would change the answer and
    cannot be followed is refused.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioParams | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    n: Literal[1] | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None
    tool_choice: Literal["none", "auto"] | None = None

    @field_validator("stop")
    @classmethod
    def _no_stop(cls, stop: str | list[str] | None) -> None:
        if stop:
            raise ValueError("stop sequences are not supported; leave it out")

    @property
    def with_sound(self) -> bool:
        return "audio" in (self.modalities or ())


@router.post("/v1/chat/completions", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def chat(request: Request, asked: ChatRequest) -> Response:
    """The answer to the last message; those before it are the conversation so far, in words."""
    check_model(asked.model)
    audio = asked.audio or AudioParams()
    check_voice(audio.voice if isinstance(audio.voice, str) else audio.voice.id)
    fields = await asyncio.to_thread(_fields, asked)
    answer = _Answer(asked, audio)
    events = _answered(request, fields, answer)
    if asked.stream:
        return await event_stream(request, _chunks(answer, events), end="[DONE]")
    return JSONResponse(await while_connected(request, _whole(answer, events)))


def _fields(asked: ChatRequest) -> dict[str, Any]:
    """Of the request to the server. Raises InvalidRequest."""
    system = [text for message in asked.messages if message.role in ("system", "developer") for text in _texts(message)]
    turns = [message for message in asked.messages if message.role in ("user", "assistant")]
    if not turns or turns[-1].role != "user":
        raise InvalidRequest("messages", turns[-1].role if turns else None, "the last one is the user's")
    for index, message in enumerate(asked.messages):
        _check_sound(index, message, last=message is turns[-1])
    *before, last = turns
    sounds = [part.input_audio for part in last.content or () if isinstance(part, AudioPart)]
    words = _texts(last)
    while before and before[-1].role == "user":  # one turn in several messages
        words = _texts(before.pop()) + words
    text = "\n".join(words)
    if len(sounds) > 1:
        raise InvalidRequest("messages", f"{len(sounds)} pieces of sound", "the last message has at most one")
    if not sounds and not text.strip():
        raise InvalidRequest("messages", "nothing", "the last one has text or input_audio", "say something")
    fields: dict[str, Any] = {
        "text": text or None,
        "messages": _in_words(before),
        "mode": mode_of(asked.model),
        "task": "chat" if sounds or asked.with_sound else "text",
        "system": "\n".join(system) or None,
        "max_tokens": asked.max_completion_tokens or asked.max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": asked.seed,
    }
    if sounds:
        speech = decode(_decoded(sounds[0].data), "input_audio")
        fields |= {"audio": speech, "sample_rate": INPUT_SAMPLE_RATE_HZ}
    return fields


def _check_sound(index: int, message: Message, last: bool) -> None:
    """Raises InvalidRequest: the message has sound that cannot be used."""
    if not last and any(isinstance(part, AudioPart) for part in message.content or ()):
        raise InvalidRequest(
            f"messages.{index}", "input_audio", "speech is taken in the last message only", "send its transcript"
        )
    if message.audio is not None and not " ".join(_texts(message)).strip():
        raise InvalidRequest(
            f"messages.{index}.audio", message.audio.id, "answers are not stored", "send its transcript as content"
        )


def _in_words(turns: list[Message]) -> str | None:
    """Turns that end with the assistant's, as the server takes them: in turn, the user first. Raises InvalidRequest."""
    joined: list[dict[str, str]] = []
    for turn in turns:
        words = " ".join(_texts(turn)).strip()
        if not words:
            raise InvalidRequest("messages", turn.role, "a turn before the last one has words", "send its transcript")
        if joined and joined[-1]["role"] == turn.role:
            joined[-1]["content"] += f"\n{words}"
        elif joined or turn.role == "user":  # what the assistant says before it was asked is left out
            joined.append({"role": turn.role, "content": words})
    return json.dumps(joined) if joined else None


def _texts(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content or () if isinstance(part, TextPart)]


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("input_audio", data[:20], "it is base64") from error


async def _answered(request: Request, fields: dict[str, Any], answer: _Answer) -> AsyncIterator[Event]:
    gateway = gateway_of(request)
    text = fields.pop("text")
    stream: AsyncStream | None = None

    def ask(client: AsyncClient, timeout_s: float) -> AsyncStream:
        nonlocal stream
        stream = client.stream(text, timeout_s=timeout_s, **fields)
        return stream

    async with (
        gateway.access.stream(caller(request)) as use,
        contextlib.aclosing(gateway.upstreams.events(ask, gateway.settings.request_timeout_s)) as events,
    ):
        async for event in events:
            if isinstance(event, Pcm):
                use.sound(event.seconds)
            yield event
        if stream is not None:
            answer.ended(stream)


async def _whole(answer: _Answer, events: AsyncIterator[Event]) -> dict[str, Any]:
    with contextlib.closing(answer):
        pieces = [answer.piece(event) async for event in events]
        return answer.completion("".join(text for text, _ in pieces), b"".join(sound for _, sound in pieces))


async def _chunks(answer: _Answer, events: AsyncIterator[Event]) -> AsyncIterator[dict[str, Any]]:
    with contextlib.closing(answer):
        async for chunk in answer.chunks(events):
            yield chunk


class _Answer:
    """One completion, as OpenAI's JSON."""

    def __init__(self, asked: ChatRequest, audio: AudioParams) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
        self._encoder = Encoder("pcm" if audio.format == "pcm16" else audio.format) if asked.with_sound else None
        # Answers are not stored: the id cannot be used later.
        self._audio_id, self._expires_at = f"audio_{uuid.uuid4().hex}", int(time.time())
        self._with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        self._tokens, self._prompt_tokens, self._cached_tokens, self._reason = 0, 0, 0, "stop"

    def close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()

    def piece(self, event: Event) -> tuple[str, bytes]:
        """Text and encoded sound of an event."""
        if isinstance(event, TextDelta):
            return event.text, b""
        if isinstance(event, TokensDelta):
            self._tokens += len(event.ids)
        elif isinstance(event, Pcm) and self._encoder is not None:
            return "", self._encoder.push(event.samples)
        return "", b""

    def ended(self, stream: AsyncStream) -> None:
        if stream.status is not None:
            self._prompt_tokens = stream.status.prompt_tokens
            self._cached_tokens = stream.status.cached_tokens
            self._reason = "length" if stream.status.reason in ("max_tokens", "context_limit") else "stop"

    def completion(self, text: str, sound: bytes) -> dict[str, Any]:
        """The whole answer at once."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._encoder is not None:
            data = base64.b64encode(sound + self._encoder.finish()).decode()
            audio = {"id": self._audio_id, "data": data, "expires_at": self._expires_at, "transcript": text}
            message |= {"content": None, "audio": audio}
        choice = {"index": 0, "message": message, "finish_reason": self._reason, "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    async def chunks(self, events: AsyncIterator[Event]) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes."""
        first: dict[str, Any] = {"role": "assistant"}
        async for event in events:
            text, sound = self.piece(event)
            if text or sound:
                yield self._chunk(first | self._delta(text, sound))
                first = {}
        if self._encoder is not None:
            if sound := self._encoder.finish():
                yield self._chunk(self._delta("", sound))
            yield self._chunk({"audio": {"id": self._audio_id, "expires_at": self._expires_at}})
        yield self._chunk(first, self._reason)
        if self._with_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def _delta(self, text: str, sound: bytes) -> dict[str, Any]:
        if self._encoder is None:
            return {"content": text}
        audio: dict[str, Any] = {"id": self._audio_id}
        if text:
            audio["transcript"] = text
        if sound:
            audio["data"] = base64.b64encode(sound).decode()
        return {"audio": audio}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._tokens,
            "total_tokens": self._prompt_tokens + self._tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }
