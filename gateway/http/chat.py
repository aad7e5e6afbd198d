"""`POST /v1/chat/completions`: text, and sound in and out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.context import caller, gateway_of
from gateway.http.chat_answer import Completion, Piece
from gateway.http.chat_request import AudioParams, ChatRequest
from gateway.http.chat_turns import question_of
from gateway.http.streams import event_stream, while_connected
from gateway.spoken_answers import SpokenAnswer
from gateway.voices import check_model, check_voice
from vita_audio.contract.errors import InvalidRequest
from vita_client import AsyncClient, AsyncStream, Pcm

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def chat(request: Request, asked: ChatRequest) -> Response:
    """The answer to the last message; those before it are the conversation so far."""
    check_model(asked.model)
    audio = asked.audio or AudioParams()
    check_voice(audio.voice if isinstance(audio.voice, str) else audio.voice.id)
    if asked.stops and asked.with_sound:
        limit = "a spoken answer cannot be cut at its words: they come before their sound"
        raise InvalidRequest("stop", asked.stops, limit, "leave it out, or ask for text")
    completion = Completion(asked, audio, gateway_of(request).spoken_answers.expiry())
    pieces = _pieces(request, asked, completion)
    if asked.stream:
        return await event_stream(request, _chunks(completion, pieces), end="[DONE]")
    return JSONResponse(await while_connected(request, _whole(completion, pieces)))


async def _pieces(request: Request, asked: ChatRequest, completion: Completion) -> AsyncIterator[Piece]:
    """Text and encoded sound; at the end a spoken answer is kept, so that its conversation can go on from it."""
    gateway, asker = gateway_of(request), caller(request)
    stream: AsyncStream | None = None

    def find(answer_id: str) -> SpokenAnswer | None:
        return gateway.spoken_answers.find(answer_id, asker.key.name)

    async with gateway.access.stream(asker) as use:  # before the work of decoding, which its key's limits bound
        question = await asyncio.to_thread(question_of, asked, find)

        def ask(client: AsyncClient, timeout_s: float) -> AsyncStream:
            nonlocal stream
            stream = client.stream(question.text, timeout_s=timeout_s, **question.fields)
            return stream

        async with contextlib.aclosing(gateway.upstreams.events(ask, gateway.settings.request_timeout_s)) as events:
            async for event in events:
                if isinstance(event, Pcm):
                    use.sound(event.seconds)
                yield completion.read(event)
                if completion.stopped:
                    break
            assert stream is not None
            yield completion.end(stream)
    if completion.audio_id:
        expires_s = gateway.spoken_answers.expiry()
        due = 0 if stream.status is None else stream.status.history_clips
        clips = question.clips[len(question.clips) - due :]
        answer = SpokenAnswer(asker.key.name, question.asked, completion.history, completion.text, expires_s, clips)
        gateway.spoken_answers.keep(completion.audio_id, answer)


async def _whole(completion: Completion, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
    with contextlib.closing(completion):
        return completion.whole(b"".join([sound async for _, sound in pieces]))


async def _chunks(completion: Completion, pieces: AsyncIterator[Piece]) -> AsyncIterator[dict[str, Any]]:
    with contextlib.closing(completion):
        async for chunk in completion.chunks(pieces):
            yield chunk
