"""A chat's answer as OpenAI's JSON, whole or in chunks."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from gateway.http.chat_request import AudioParams, ChatRequest
from gateway.http.stop_sequences import StopSequences
from gateway.sound.encode import Encoder
from vita_client import AsyncStream, Event, Pcm, PromptIds, TextDelta, TokensDelta

#: Text and encoded sound.
Piece = tuple[str, bytes]


class Completion:
    """One completion; it counts and collects what is read.

    Args:
        expires_at: of the id of its sound, Unix time.

    Attributes:
        audio_id: empty without sound.
        text: what was read so far.
    """

    def __init__(self, asked: ChatRequest, audio: AudioParams, expires_at: int) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
        self._encoder = Encoder("pcm" if audio.format == "pcm16" else audio.format) if asked.with_sound else None
        self.audio_id, self._expires_at = f"audio_{uuid.uuid4().hex}" if asked.with_sound else "", expires_at
        self._with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        self._stops, self.text = StopSequences(asked.stops), ""
        self._prompt: tuple[int, ...] = ()
        self._tokens: list[int] = []
        self._prompt_tokens, self._cached_tokens, self._reason = 0, 0, "stop"

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence has come: nothing more is to be read."""
        return self._stops.found

    @property
    def history(self) -> np.ndarray:
        """Ids of the conversation up to here: int32 [ids]; empty if the server did not send its prompt."""
        return np.asarray((*self._prompt, *self._tokens) if self._prompt else (), np.int32)

    def close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()

    def read(self, event: Event) -> Piece:
        """What an event brings."""
        if isinstance(event, TextDelta):
            return self._told(self._stops.push(event.text)), b""
        if isinstance(event, PromptIds):
            self._prompt = event.ids
        elif isinstance(event, TokensDelta):
            self._tokens.extend(event.ids)
        elif isinstance(event, Pcm) and self._encoder is not None:
            return "", self._encoder.push(event.samples)
        return "", b""

    def end(self, stream: AsyncStream) -> Piece:
        """What is left at the end of the answer."""
        if (status := stream.status) is not None:
            self._prompt_tokens, self._cached_tokens = status.prompt_tokens, status.cached_tokens
            cut = status.reason in ("max_tokens", "context_limit") and not self.stopped
            self._reason = "length" if cut else "stop"
        return self._told(self._stops.finish()), b"" if self._encoder is None else self._encoder.finish()

    def whole(self, sound: bytes) -> dict[str, Any]:
        """All at once."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self._encoder is not None:
            data = base64.b64encode(sound).decode()
            audio = {"id": self.audio_id, "data": data, "expires_at": self._expires_at, "transcript": self.text}
            message |= {"content": None, "audio": audio}
        choice = {"index": 0, "message": message, "finish_reason": self._reason, "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    async def chunks(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[dict[str, Any]]:
        """As it comes."""
        first: dict[str, Any] = {"role": "assistant"}
        async for text, sound in pieces:
            if text or sound:
                yield self._chunk(first | self._delta(text, sound))
                first = {}
        if self._encoder is not None:
            yield self._chunk({"audio": {"id": self.audio_id, "expires_at": self._expires_at}})
        yield self._chunk(first, self._reason)
        if self._with_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def _told(self, text: str) -> str:
        self.text += text
        return text

    def _delta(self, text: str, sound: bytes) -> dict[str, Any]:
        if self._encoder is None:
            return {"content": text}
        audio: dict[str, Any] = {"id": self.audio_id}
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
            "completion_tokens": len(self._tokens),
            "total_tokens": self._prompt_tokens + len(self._tokens),
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }
