"""`POST /v1/audio/transcriptions`: the words of a sound file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse

from gateway.context import caller, gateway_of
from gateway.http.streams import event_stream, while_connected
from gateway.sound.decode import decode
from gateway.voices import check_model, mode_of
from vita_audio.contract.fields import RequestFields
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import AsyncClient, AsyncStream, TextDelta

router = APIRouter(tags=["audio"])
Format = Literal["json", "text", "verbose_json", "srt", "vtt"]


@router.post(
    "/v1/audio/transcriptions",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in ("application/json", "text/plain", "text/event-stream")}}},
)
async def transcriptions(
    request: Request,
    file: UploadFile,
    model: Annotated[str, Form()],
    response_format: Annotated[Format, Form()] = "json",
    stream: Annotated[bool, Form()] = False,
    language: Annotated[str, Form(max_length=32)] = "unknown",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
) -> Response:
    """`language` only comes back in verbose_json; `prompt`, `include` and other fields change nothing. The model gives
    no times: verbose_json has no segments, srt and vtt have one.
    """
    check_model(model)
    spoken = _Spoken()
    words = _words(request, await file.read(), spoken, temperature, mode_of(model))
    if stream:
        return await event_stream(request, _events(words, spoken))
    text = (await while_connected(request, _joined(words))).strip()
    if response_format == "json":
        return JSONResponse({"text": text, "usage": spoken.usage})
    if response_format == "text":
        return PlainTextResponse(f"{text}\n")
    if response_format == "verbose_json":
        return JSONResponse(
            {
                "task": "transcribe",
                "language": language,
                "duration": spoken.seconds,
                "text": text,
                "usage": spoken.usage,
            }
        )
    return PlainTextResponse(_subtitles(text, spoken.seconds, response_format))


@dataclass(slots=True)
class _Spoken:
    """How long the speech is, once it is decoded."""

    seconds: float = 0.0

    @property
    def usage(self) -> dict[str, Any]:
        return {"type": "duration", "seconds": round(self.seconds)}


async def _words(
    request: Request, file: bytes, spoken: _Spoken, temperature: float, mode: str | None
) -> AsyncIterator[str]:
    gateway = gateway_of(request)
    async with gateway.access.stream(caller(request)):  # before the work of decoding, which its key's limits bound
        speech = await asyncio.to_thread(decode, file, "file")
        spoken.seconds = len(speech) / INPUT_SAMPLE_RATE_HZ
        fields: RequestFields = {"task": "asr", "audio": speech, "sample_rate": INPUT_SAMPLE_RATE_HZ}
        fields |= {"temperature": temperature, "mode": mode}

        def listen(client: AsyncClient, timeout_s: float) -> AsyncStream:
            return client.stream(timeout_s=timeout_s, **fields)

        async with aclosing(gateway.upstreams.events(listen, gateway.settings.request_timeout_s)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    yield event.text


async def _joined(words: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in words])


async def _events(words: AsyncIterator[str], spoken: _Spoken) -> AsyncIterator[dict[str, Any]]:
    text = ""
    async for piece in words:
        text += piece
        yield {"type": "transcript.text.delta", "delta": piece}
    yield {"type": "transcript.text.done", "text": text.strip(), "usage": spoken.usage}


def _subtitles(text: str, seconds: float, kind: str) -> str:
    mark = "," if kind == "srt" else "."
    minutes, rest = divmod(round(seconds * 1000), 60_000)
    end = f"00:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
    cue = f"00:00:00{mark}000 --> {end}\n{text}\n"
    return f"1\n{cue}" if kind == "srt" else f"WEBVTT\n\n{cue}"
