"""`POST /v1/audio/speech`: a text read aloud, sentence by sentence, as a file that streams."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from gateway.context import caller, gateway_of
from gateway.http.streams import HEADERS, begun, event_stream
from gateway.sound.encode import CONTENT_TYPES, Encoder, Format
from gateway.voices import VOICE, check_model, check_voice, mode_of
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import RequestFields
from vita_client import AsyncClient, AsyncReading, Pcm, StatusUpdate, TokensDelta
from vita_client.sentences import has_words

router = APIRouter(tags=["audio"])


class VoiceId(BaseModel):
    id: str = Field(max_length=64)


Voice = Annotated[str, Field(max_length=64)] | VoiceId


class SpeechRequest(BaseModel):
    """`instructions` are taken and not followed; `seed` is an addition: equal seeds, equal sound."""

    model: str
    input: Annotated[str, Field(min_length=1, max_length=4096)]
    voice: Voice = VOICE
    instructions: str | None = None
    response_format: Format = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4.0)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None


@router.post(
    "/v1/audio/speech",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in (*CONTENT_TYPES.values(), "text/event-stream")}}},
)
async def speech(request: Request, asked: SpeechRequest) -> StreamingResponse:
    """The file, or (`stream_format` sse) events with pieces of it in base64."""
    check_model(asked.model)
    check_voice(asked.voice if isinstance(asked.voice, str) else asked.voice.id)
    if not has_words(asked.input):
        raise InvalidRequest("input", asked.input, "it has no letter and no digit", "send words")
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    pieces = _spoken(request, asked, usage)
    if asked.stream_format == "sse":
        return await event_stream(request, _events(pieces, usage))
    media_type = CONTENT_TYPES[asked.response_format]
    return StreamingResponse(await begun(request, pieces), media_type=media_type, headers=HEADERS)


async def _spoken(request: Request, asked: SpeechRequest, usage: dict[str, int]) -> AsyncIterator[bytes]:
    """Pieces of the file; `usage` is counted on the way."""
    gateway = gateway_of(request)
    prompts: dict[str, int] = {}  # tokens, of each sentence's stream

    def read(client: AsyncClient, timeout_s: float) -> AsyncReading:
        fields: RequestFields = {"seed": asked.seed, "mode": mode_of(asked.model)}
        return client.read(asked.input, timeout_s=timeout_s, total_s=timeout_s, **fields)

    with contextlib.closing(Encoder(asked.response_format, asked.speed)) as encoder:
        async with (
            gateway.access.stream(caller(request)) as use,
            contextlib.aclosing(gateway.upstreams.events(read, gateway.settings.request_timeout_s)) as events,
        ):
            async for event in events:
                if isinstance(event, Pcm) and len(event.samples):
                    if piece := encoder.push(event.samples):
                        yield piece
                    use.sound(event.seconds)
                elif isinstance(event, TokensDelta):
                    usage["output_tokens"] += len(event.ids)
                elif isinstance(event, StatusUpdate):
                    prompts[event.status.stream] = event.status.prompt_tokens
            usage["input_tokens"] = sum(prompts.values())
            usage["total_tokens"] = usage["input_tokens"] + usage["output_tokens"]
        if piece := encoder.finish():
            yield piece


async def _events(pieces: AsyncIterator[bytes], usage: dict[str, int]) -> AsyncIterator[dict[str, Any]]:
    async for piece in pieces:
        yield {"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()}
    yield {"type": "speech.audio.done", "usage": usage}
