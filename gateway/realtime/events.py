"""The events of the Realtime interface: those of a client as checked types, those of the server as plain objects.

A client event is checked whole before anything is done with it. The server's events are made by `event`; the tests read
each of them with the openai package's own types.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from gateway.realtime.session import MaxTokens, Modalities, Text, Unsupported

Id = Annotated[str, Field(min_length=1, max_length=64)]


class EventError(Exception):
    """An `error` event to be sent; its text is one line, fit to show to a user.

    `code` is OpenAI's where it has one; `param` is the field at fault; `kind` is `invalid_request_error` or
    `server_error`.
    """

    def __init__(self, message: str, code: str, param: str | None = None, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.code, self.param, self.kind = code, param, kind


class ClientEvent(BaseModel):
    event_id: Annotated[str, Field(max_length=512)] | None = None


class SessionUpdate(ClientEvent):
    type: Literal["session.update"]
    session: dict[str, Any]


class Append(ClientEvent):
    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(ClientEvent):
    type: Literal["input_audio_buffer.commit"]


class Clear(ClientEvent):
    type: Literal["input_audio_buffer.clear"]


class Content(BaseModel):
    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio", "text", "audio"]
    text: Text | None = None
    audio: str | None = None
    transcript: Text | None = None


class Message(BaseModel):
    """An item of the conversation: only messages can be made; calls of tools and their results cannot."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Content], Field(max_length=64)]
    id: Id | None = None


class Reference(BaseModel):
    type: Literal["item_reference"]
    id: Id


class ItemCreate(ClientEvent):
    type: Literal["conversation.item.create"]
    item: Message
    previous_item_id: Id | None = None


class ItemRetrieve(ClientEvent):
    type: Literal["conversation.item.retrieve"]
    item_id: Id


class ItemTruncate(ClientEvent):
    type: Literal["conversation.item.truncate"]
    item_id: Id
    content_index: int = 0
    audio_end_ms: Annotated[int, Field(ge=0, le=2**31)]


class ItemDelete(ClientEvent):
    type: Literal["conversation.item.delete"]
    item_id: Id


InputItem = Annotated[Message | Reference, Field(discriminator="type")]
_Key = Annotated[str, Field(max_length=64)]
_Value = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[_Key, _Value], Field(max_length=16)]


class ResponseParams(Unsupported):
    conversation: Literal["auto", "none"] | None = None
    input: Annotated[list[InputItem], Field(max_length=64)] | None = None
    instructions: Text | None = None
    max_output_tokens: MaxTokens | None = None
    metadata: Metadata | None = None
    output_modalities: Modalities | None = None
    audio: dict[str, Any] | None = None


class ResponseCreate(ClientEvent):
    type: Literal["response.create"]
    response: ResponseParams | None = None


class ResponseCancel(ClientEvent):
    type: Literal["response.cancel"]
    response_id: Id | None = None


class OutputClear(ClientEvent):
    type: Literal["output_audio_buffer.clear"]


AnyClientEvent = (
    SessionUpdate
    | Append
    | Commit
    | Clear
    | ItemCreate
    | ItemRetrieve
    | ItemTruncate
    | ItemDelete
    | ResponseCreate
    | ResponseCancel
    | OutputClear
)
_CLIENT_EVENTS: TypeAdapter[AnyClientEvent] = TypeAdapter(Annotated[AnyClientEvent, Field(discriminator="type")])

_KINDS = {"server_vad", "semantic_vad", "message", "item_reference"}


def read_event(text: str | bytes) -> AnyClientEvent:
    """A message of a client.

    Raises:
        EventError: it is no JSON object, of an unknown type, or a field is wrong.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EventError("the message is not JSON; send one event as a JSON object", "invalid_json") from error
    return parse_event(fields)


def parse_event(fields: Any) -> AnyClientEvent:
    """The event that `fields` are; as `read_event`."""
    if not isinstance(fields, dict):
        raise EventError("an event is a JSON object with a type", "invalid_type")
    try:
        return _CLIENT_EVENTS.validate_python(fields)
    except ValidationError as error:
        raise wrong_field(error, skip=1) from error


def wrong_field(error: ValidationError, prefix: str = "", skip: int = 0) -> EventError:
    """The first fault of what pydantic refused, in words; `skip` so many of the first names of its place."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Pydantic names the members of unions too: `audio/pcm`, `constrained-int`, `server_vad`.
    names = [str(name) for name in fault["loc"][skip:] if re.fullmatch(r"[a-z0-9_]+", str(name)) and name not in _KINDS]
    param = ".".join([*([prefix] if prefix else []), *names])
    if fault["type"] == "union_tag_invalid" and not names:
        return EventError(
            "there is no such event here; see docs/gateway.md for those there are", "unknown_event", "type"
        )
    code = {"missing": "missing_required_parameter", "union_tag_not_found": "missing_required_parameter"}
    words = fault["msg"].removeprefix("Value error, ")
    message = f"{param or 'type'}: {words[0].lower()}{words[1:]}"
    return EventError(message, code.get(fault["type"], "invalid_value"), param or "type")


def new_id(kind: str) -> str:
    """An id such as `item_3f...`."""
    return f"{kind}_{secrets.token_hex(12)}"


def event(kind: str, **fields: Any) -> dict[str, Any]:
    """An event of the server."""
    return {"event_id": new_id("event"), "type": kind, **fields}


def error_event(error: EventError, event_id: str | None) -> dict[str, Any]:
    """`event_id`: of the client's event that was at fault."""
    return event(
        "error",
        error={
            "type": error.kind,
            "code": error.code,
            "message": str(error),
            "param": error.param,
            "event_id": event_id,
        },
    )


def event_id_of(text: str | bytes) -> str | None:
    """The id of an event that is wrong otherwise, if it has one."""
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = fields.get("event_id") if isinstance(fields, Mapping) else None
    return found[:512] if isinstance(found, str) else None
