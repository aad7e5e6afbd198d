"""What can go wrong between client and server, as typed one-line errors with stable codes.

A field the client itself finds wrong raises `InvalidRequest` before anything is sent. An error of a model comes as text
that starts with its code (`vita_audio.contract.errors.from_wire`); the code chooses the class and stays in `code`.
Triton puts such a text into a response, without a gRPC status. It can send a status instead (header
`triton_grpc_error`), but that must not be used: with several errors at once tritonserver 2.51 dies of it, by SIGSEGV or
"API misuse".
"""

from __future__ import annotations

import re

import grpc

from vita_audio.contract.errors import VitaError, from_wire, without_prefix
from vita_audio.contract.messages import Status

NOT_READY, SHUTTING_DOWN, UNHEALTHY = "not_ready", "shutting_down", "unhealthy"
_MAX_MESSAGE_CHARS = 500
#: Errors of Triton's own core have no code of ours. They are recognised by its fixed phrases (tritonserver 2.51),
#: here and nowhere else: no such model, a server on its way out, a model process that died, or a request whose tensors
#: do not fit the model.
_CORE_UNAVAILABLE = {
    NOT_READY: re.compile(r"unknown model|is not ready|(Server|version) not ready"),
    SHUTTING_DOWN: re.compile(r"Server is stopping"),
    UNHEALTHY: re.compile(r"Stub process .*is (unhealthy|not healthy)"),
}
#: The wheel's Triton (up to 25.06) names the shared memory of a model process when it cannot grow.
_SHARED_MEMORY = re.compile(r"(shared memory (?:pool size for key|key|region)) '[^']*'")
_CORE_REFUSAL = re.compile(r"\[request id: |unexpected inference input|expected \d+ inputs")
#: gRPC's words for a request above `Connection.max_message_bytes`: it was not sent.
_TOO_LARGE = re.compile(r"^(?:CLIENT: )?Sent message larger than max")
#: What gRPC puts before the reason why it could not connect.
_CONNECT_PREFIX = re.compile(r"^failed to connect to all addresses; last error: (UNKNOWN|UNAVAILABLE|INTERNAL): ")


class ClientError(VitaError):
    """Base of every error about a server or a stream."""


class RequestRejected(ClientError):
    """The server found the request wrong (INVALID_ARGUMENT); `field` and the text are the server's."""

    default_code = "invalid_request"


class ServerUnavailable(ClientError):
    """No server (`unavailable`), one without the model (`not_ready`), or one that is `server_full`, `shutting_down` or
    `unhealthy` (a part of it died; it starts again by itself): try later.
    """

    default_code = "unavailable"


class StreamBroken(ServerUnavailable):
    """The stream ended without a final status: the server or the network went away. What came before is incomplete."""

    default_code = "stream_broken"


class AccessDenied(ClientError):
    """The server, or something in front of it, refused this client (UNAUTHENTICATED, PERMISSION_DENIED)."""

    default_code = "access_denied"


class DeadlineExceeded(ClientError):
    """The stream was not finished within its deadline."""

    default_code = "deadline_exceeded"


class StreamCancelled(ClientError):
    """The server says that it cancelled the stream, or the client was closed; not after the stream's own `cancel()`."""

    default_code = "cancelled"


class GenerationFailed(ClientError):
    """The server accepted the request and failed while it worked on it; `code` is the server's, where it has one."""

    default_code = "generation_failed"


class BadResponse(ClientError):
    """A response that does not follow the public contract: client and server do not fit together."""

    default_code = "bad_response"


class ClientClosed(ClientError):
    """The client was closed before this call."""

    default_code = "client_closed"


#: The class of each code that a server may send; any other is `GenerationFailed`.
_CLASSES: dict[str, type[ClientError]] = {
    RequestRejected.default_code: RequestRejected,
    StreamCancelled.default_code: StreamCancelled,
    **dict.fromkeys(("server_full", SHUTTING_DOWN, NOT_READY, UNHEALTHY), ServerUnavailable),
}
#: Codes of errors of `ServerUnavailable` and what is beneath it.
UNAVAILABLE = frozenset(code for code, kind in _CLASSES.items() if kind is ServerUnavailable) | {
    ServerUnavailable.default_code,
    StreamBroken.default_code,
}


def one_line(text: str) -> str:
    """Text of a server as one printable line of bounded length, without what Triton puts before it, and keys in it."""
    line = _SHARED_MEMORY.sub(r"\1 '...'", without_prefix(" ".join(text.split())))
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 3] + "..."


def _from_wire(text: str) -> ClientError | None:
    """The error of a text with a code, None for any other text."""
    wire = from_wire(text)
    if wire is None:
        return None
    return _CLASSES.get(wire.code, GenerationFailed)(one_line(wire.message), code=wire.code, field=wire.field)


def from_rpc(code: grpc.StatusCode, details: str | None, *, url: str, timeout_s: float, responses: int) -> ClientError:
    """The error for a call that ended with a gRPC status other than OK, and that this client did not cancel.

    Args:
        responses: how many responses had arrived: a connection lost later than that is a broken stream.
    """
    if details and (error := _from_wire(details)):
        return error
    text = one_line(details or code.name)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return RequestRejected(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE.match(text):
        return RequestRejected(f"{text}: send fewer seconds of speech, or raise `max_message_bytes` of Connection")
    # A proxy whose server died in the middle of a stream resets it, which gRPC calls CANCELLED, or ends it without
    # trailers, which gRPC calls UNKNOWN.
    if responses and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return StreamBroken(f"the server at {url} went away after {responses} responses ({text})")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ServerUnavailable(f"no answer from {url}: {_CONNECT_PREFIX.sub('', text)}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(
            f"not finished within {timeout_s:g} s ({responses} responses had come); allow more with a longer timeout"
        )
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AccessDenied(f"{url} refused this client: {text}")
    if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        return ServerUnavailable(f"{url} does not serve this model: {text}", code=NOT_READY)
    return GenerationFailed(f"{text} ({code.name})")


def from_message(message: str, url: str) -> ClientError:
    """The error for a message inside a response."""
    if error := _from_wire(message):
        return error
    text = one_line(message)
    for code, phrase in _CORE_UNAVAILABLE.items():
        if phrase.search(text):
            return ServerUnavailable(f"{url} cannot serve this model: {text}", code=code)
    return RequestRejected(text) if _CORE_REFUSAL.match(message) else GenerationFailed(text)


def from_status(status: Status) -> ClientError | None:
    """The error that a status reports, None for one that is no failure."""
    if status.state not in ("failed", "cancelled"):
        return None
    kind = _CLASSES.get(status.code, GenerationFailed if status.state == "failed" else StreamCancelled)
    verb = "failed" if status.state == "failed" else "cancelled the stream"
    return kind(f"the server {verb}: {one_line(status.reason) or 'no reason given'}", code=status.code)
