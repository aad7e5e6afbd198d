"""Errors with one readable line each (field, value, limit, remedy) and a stable code, and how they travel as text.

Triton carries an error of a model as text only, so the code is part of the text:
`[vita:invalid_request field=TOP_P] TOP_P: 2.0 is not valid: ...`. Programs read the code, people the sentence.
"""

from __future__ import annotations

import re
from typing import ClassVar, NamedTuple
from urllib.parse import quote, unquote

#: What Triton writes before the text of a model.
_TRITON_PREFIX = re.compile(r"(?:\[request id: [^\]]*\] |in ensemble '[^']*', )+")
_WIRE = re.compile(r"\[vita:([a-z][a-z0-9_]*)(?: field=([^\s\]]*))?\] ?(.*)", re.DOTALL)


class VitaError(Exception):
    """Base of every error this project raises on purpose; its text is one line, fit to show to a user.

    `code` is stable and for programs; a class has one, an error that came from elsewhere keeps the one it came with.
    `field` is the input or option at fault, empty when there is none.
    """

    default_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str = "", *, code: str = "", field: str = "") -> None:
        super().__init__(message)
        self.code, self.field = code or self.default_code, field


class InvalidRequest(VitaError):
    """A request field is wrong. Travels as gRPC INVALID_ARGUMENT.

    Args:
        field: public name of the input, e.g. ``TOP_P``.
        value: what was sent (shortened in the message).
        limit: what is allowed, in words.
        remedy: what to do, in words (optional).
    """

    default_code = "invalid_request"

    def __init__(self, field: str, value: object, limit: str, remedy: str = "") -> None:
        self.value, self.limit, self.remedy = value, limit, remedy
        shown = repr(value)
        if len(shown) > 60:
            shown = shown[:57] + "..."
        super().__init__(f"{field}: {shown} is not valid: {limit}" + (f"; {remedy}" if remedy else ""), field=field)


class ServerFull(VitaError):
    """No slot and no place in the queue. Travels as gRPC UNAVAILABLE."""

    default_code = "server_full"

    def __init__(self, running: int, waiting: int) -> None:
        self.running, self.waiting = running, waiting
        super().__init__(f"server is full ({running} running, {waiting} waiting)")


class ServerStopping(VitaError):
    """The server takes no new streams because it is about to end. Travels as gRPC UNAVAILABLE."""

    default_code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("server is shutting down; ask again later, or another server")


class ServerUnhealthy(VitaError):
    """A part of the server has failed, and it is about to start again by itself. Travels as gRPC UNAVAILABLE."""

    default_code = "unhealthy"

    def __init__(self) -> None:
        super().__init__("a part of the server has failed, it starts again by itself; ask again in a few seconds")


class BadMessage(VitaError):
    """A message between two models does not have the agreed form."""

    default_code = "bad_message"


class CheckpointError(VitaError):
    """A checkpoint folder is missing, truncated or does not have the expected keys and shapes (all are named)."""

    default_code = "checkpoint_error"


class EngineError(VitaError):
    """Engines are missing, do not fit their manifest, or cannot run what was asked."""

    default_code = "engine_error"


class WireError(NamedTuple):
    """An error as it arrives: code, field (empty when there is none) and the sentence for a person."""

    code: str
    field: str
    message: str


def error_code(error: BaseException) -> str:
    """The code of any exception; what was not raised on purpose is an `internal_error`."""
    return error.code if isinstance(error, VitaError) else VitaError.default_code


def in_one_line(error: BaseException) -> str:
    """Its type and the first line of what it says: engines write several."""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0].strip()}" if lines else "")


def to_wire(error: BaseException) -> str:
    """Any exception as the one line that Triton carries: `[vita:CODE field=FIELD] sentence`.

    Runs of white space become one space. What was not raised on purpose is named with its type.
    """
    text = str(error) if isinstance(error, VitaError) else f"internal error: {type(error).__name__}: {error}"
    field = quote(error.field, safe="", errors="backslashreplace") if isinstance(error, VitaError) else ""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    return f"[vita:{error_code(error)}{f' field={field}' if field else ''}] {line}"


def from_wire(text: str) -> WireError | None:
    """Read what `to_wire` wrote, behind any prefixes of Triton; None for any other text."""
    match = _WIRE.fullmatch(without_prefix(text))
    return None if match is None else WireError(match[1], unquote(match[2] or ""), match[3])


def without_prefix(text: str) -> str:
    """The text of a model without the request id and the ensemble's name that Triton writes before it."""
    prefix = _TRITON_PREFIX.match(text)
    return text if prefix is None else text[prefix.end() :]
