"""MESSAGES: the turns before a request as text, for callers that keep a conversation in words (OpenAI's chat)."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from vita_audio.contract.errors import InvalidRequest

FIELD = "MESSAGES"
MAX_MESSAGES = 256
MAX_MESSAGES_CHARACTERS = 262_144
_REMEDY = 'send JSON such as [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]'


class Message(NamedTuple):
    """One turn in words; role user or assistant."""

    role: str
    content: str


def read_messages(text: str) -> tuple[Message, ...]:
    """The turns that MESSAGES holds: user, assistant, user, assistant, ..., each with words.

    Raises:
        InvalidRequest: not JSON of this form, roles in another order, an empty content, or too much of it.
    """
    if len(text) > MAX_MESSAGES_CHARACTERS:
        limit = f"at most {MAX_MESSAGES_CHARACTERS} characters are taken"
        raise InvalidRequest(FIELD, f"{len(text)} characters", limit, "leave the oldest turns out")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(FIELD, text, f"it is not JSON ({type(error).__name__})", _REMEDY) from error
    if not isinstance(found, list) or not 0 < len(found) <= MAX_MESSAGES:
        raise InvalidRequest(FIELD, text, f"it is a list of 1 to {MAX_MESSAGES} messages", _REMEDY)
    messages = tuple(_message(item, place) for place, item in enumerate(found))
    for place, message in enumerate(messages):
        if message.role != ("user", "assistant")[place % 2]:
            limit = f"message {place} is of {message.role}: user and assistant take turns, the user first"
            raise InvalidRequest(FIELD, text, limit, "join messages of one role that follow each other")
    if len(messages) % 2:
        raise InvalidRequest(FIELD, text, "it ends with the user's turn", "send that one as TEXT or AUDIO")
    return messages


def _message(item: Any, place: int) -> Message:
    fine = isinstance(item, dict) and item.keys() == {"role", "content"}
    if not fine or item["role"] not in ("user", "assistant") or not isinstance(item["content"], str):
        limit = f"message {place} has a role (user or assistant) and a content (a string), nothing else"
        raise InvalidRequest(FIELD, item, limit, _REMEDY)
    if not item["content"].strip():
        raise InvalidRequest(FIELD, item, f"message {place} is empty", "leave the turn out")
    try:
        item["content"].encode("utf-8")
    except UnicodeEncodeError as error:
        limit = f"character {error.start} of message {place} is a lone surrogate"
        raise InvalidRequest(FIELD, item["role"], limit, "send valid Unicode") from error
    return Message(item["role"], item["content"])
