"""One response as its client sees it: its events in the order that clients rely on, and what it is at its end.

created, output_item.added, conversation.item.added, content_part.added, deltas, the dones of each of these, done. An
answer that brings nothing has the first and the last of them only.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.realtime.events import Metadata, event, new_id
from gateway.realtime.items import Item, Items, message_item
from gateway.realtime.outbox import Outbox
from vita_audio.contract.rates import TOKENS_PER_SECOND
from vita_client import AsyncStream

#: Why the model stopped, where it would have gone on.
_CUT = ("max_tokens", "context_limit")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a response was asked to be. `conversation_id` None: it is not part of the conversation."""

    conversation_id: str | None
    modality: str
    max_output_tokens: int | str
    audio_format: dict[str, Any]
    voice: str
    speed: float
    metadata: Metadata | None


class Response:
    """Made when it is created; `finish` may be called at any time, and once."""

    def __init__(self, terms: Terms, outbox: Outbox, items: Items) -> None:
        self.id, self.item_id = new_id("resp"), new_id("item")
        self.terms, self._outbox, self._items = terms, outbox, items
        self._text = ""
        self._item: Item | None = None
        self._status = "in_progress"
        self._details: dict[str, Any] | None = None
        self._usage: dict[str, Any] | None = None
        self._put("response.created", response=self._resource())

    @property
    def finished(self) -> bool:
        return self._status != "in_progress"

    @property
    def _spoken(self) -> bool:
        return self.terms.modality == "audio"

    def text(self, delta: str) -> None:
        """The next text, of what is said or written."""
        self._begin()
        self._text += delta
        kind = "output_audio_transcript" if self._spoken else "output_text"
        self._put(f"response.{kind}.delta", **self._place(), delta=delta)

    def sound(self, encoded: bytes, on_sent: Callable[[], None]) -> None:
        """The next sound."""
        self._begin()
        delta = base64.b64encode(encoded).decode()
        message = event("response.output_audio.delta", response_id=self.id, **self._place(), delta=delta)
        self._outbox.put(message, self.id, on_sent)

    def complete(self, stream: AsyncStream) -> None:
        """The model has stopped."""
        self._usage = usage(stream)
        self._begin()
        if stream.status is not None and stream.status.reason in _CUT:
            self._finish("incomplete", {"type": "incomplete", "reason": "max_output_tokens"})
        else:
            self._finish("completed", None)

    def cancel(self, reason: str, stream: AsyncStream | None) -> None:
        """`reason`: client_cancelled or turn_detected. Its sound that was not sent is dropped."""
        self._outbox.discard(self.id)
        self._usage = None if stream is None else usage(stream)
        self._finish("cancelled", {"type": "cancelled", "reason": reason})

    def fail(self, kind: str, code: str, message: str) -> None:
        """The server could not answer, or not to the end."""
        self._finish("failed", {"type": "failed", "error": {"type": kind, "code": code, "message": message}})

    def _begin(self) -> None:
        if self._item is not None:
            return
        self._item = message_item("assistant", [], "in_progress", self.item_id)
        self._put("response.output_item.added", output_index=0, item=dict(self._item))
        if self.terms.conversation_id is not None:
            previous = self._items.add(self._item)
            self._outbox.put(event("conversation.item.added", previous_item_id=previous, item=dict(self._item)))
        self._put("response.content_part.added", **self._place(), part=self._part(""))

    def _finish(self, status: str, details: dict[str, Any] | None) -> None:
        self._status, self._details = status, details
        if self._item is not None:
            if self._spoken:
                self._put("response.output_audio.done", **self._place())
                self._put("response.output_audio_transcript.done", **self._place(), transcript=self._text)
            else:
                self._put("response.output_text.done", **self._place(), text=self._text)
            self._put("response.content_part.done", **self._place(), part=self._part(self._text))
            self._item["status"] = "completed" if status == "completed" else "incomplete"
            words = {"transcript": self._text} if self._spoken else {"text": self._text}
            self._item["content"] = [{"type": f"output_{self.terms.modality}", **words}]
            self._put("response.output_item.done", output_index=0, item=self._item)
            if self.terms.conversation_id is not None:
                self._outbox.put(event("conversation.item.done", item=self._item))
        self._put("response.done", response=self._resource())

    def _part(self, words: str) -> dict[str, str]:
        return {"type": self.terms.modality, "transcript" if self._spoken else "text": words}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _put(self, kind: str, **fields: Any) -> None:
        if "response" not in fields:
            fields["response_id"] = self.id
        self._outbox.put(event(kind, **fields))

    def _resource(self) -> dict[str, Any]:
        terms = self.terms
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self._status,
            "status_details": self._details,
            "output": [] if self._item is None else [self._item],
            "conversation_id": terms.conversation_id,
            "output_modalities": [terms.modality],
            "max_output_tokens": terms.max_output_tokens,
            "audio": {"output": {"format": terms.audio_format, "voice": terms.voice}},
            "usage": self._usage,
            "metadata": terms.metadata,
        }


def usage(stream: AsyncStream) -> dict[str, Any]:
    """Tokens in and out; those of the prompt are counted together."""
    status, metrics = stream.status, stream.metrics
    prompt, cached = (0, 0) if status is None else (status.prompt_tokens, status.cached_tokens)
    audio = min(metrics.tokens, round(metrics.audio_s * TOKENS_PER_SECOND))
    return {
        "total_tokens": prompt + metrics.tokens,
        "input_tokens": prompt,
        "output_tokens": metrics.tokens,
        "input_token_details": {"cached_tokens": cached},
        "output_token_details": {"text_tokens": metrics.tokens - audio, "audio_tokens": audio},
    }
