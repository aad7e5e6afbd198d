"""What can go wrong between client and server, as typed one-line errors.

A field the client itself finds wrong raises `InvalidRequest` before anything is sent. Triton reports an error of a
stream as a message without a code inside a response, so the kind of error is read from its words; the words are those
of `vita_audio.contract.errors`. Triton can send a gRPC status with a code instead (header `triton_grpc_error`), but
that must not be used: with several errors at once tritonserver 2.51 dies of it, by SIGSEGV or "API misuse".
"""

from __future__ import annotations

import re

import grpc

from vita_audio.contract.errors import VitaError

_MAX_MESSAGE_CHARS = 500
#: What Triton puts before a model's own words.
_TRITON_PREFIX = re.compile(r"^(\[request id: [^\]]*\] |in ensemble '[^']*', )+")
#: Triton's own checks of a request (names, types and shapes of its tensors).
_CORE_REFUSAL = re.compile(r"\[request id: |unexpected inference input|expected \d+ inputs")
#: What gRPC puts before the reason why it could not connect.
_CONNECT_PREFIX = re.compile(r"^failed to connect to all addresses; last error: (UNKNOWN|UNAVAILABLE|INTERNAL): ")


class ClientError(VitaError):
    """Base of every error about a server or a stream."""


class RequestRejected(ClientError):
    """The server found the request wrong (INVALID_ARGUMENT); the text is the server's."""


class ServerUnavailable(ClientError):
    """No server, a server without the model, or a full one. Worth trying again later."""


class StreamBroken(ServerUnavailable):
    """The stream ended without a final status: the server or the network went away. What came before is incomplete."""


class AccessDenied(ClientError):
    """The server, or something in front of it, refused this client (UNAUTHENTICATED, PERMISSION_DENIED)."""


class DeadlineExceeded(ClientError):
    """The stream was not finished within its deadline."""


class StreamCancelled(ClientError):
    """The stream was cancelled, and not through its own `cancel()`."""


class GenerationFailed(ClientError):
    """The server accepted the request and failed while it worked on it."""


class BadResponse(ClientError):
    """A response that does not follow the public contract: client and server do not fit together."""


class ClientClosed(ClientError):
    """The client was closed before this call."""


def one_line(text: str) -> str:
    """Text of a server as one line of bounded length, without what Triton puts before it."""
    line = _TRITON_PREFIX.sub("", " ".join(text.split()))
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 3] + "..."


def from_rpc(code: grpc.StatusCode, details: str | None, *, url: str, timeout_s: float, responses: int) -> ClientError:
    """The error for a call that ended with a gRPC status other than OK.

    Args:
        responses: how many responses had arrived: a connection lost later than that is a broken stream.
    """
    text = one_line(details or code.name)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return RequestRejected(text)
    # A proxy ends a stream that has begun without trailers, which gRPC calls UNKNOWN.
    if responses and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
        return StreamBroken(f"the server at {url} went away after {responses} responses ({text})")
    if code is grpc.StatusCode.UNAVAILABLE:
        if "server is full" in text:
            return ServerUnavailable(text)
        return ServerUnavailable(f"no answer from {url}: {_CONNECT_PREFIX.sub('', text)}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(
            f"not finished within {timeout_s:g} s ({responses} responses had come); allow more with a longer timeout"
        )
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AccessDenied(f"{url} refused this client: {text}")
    if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        return ServerUnavailable(f"{url} does not serve this model: {text}")
    if code is grpc.StatusCode.CANCELLED:
        return StreamCancelled(f"the stream was cancelled: {text}")
    return GenerationFailed(f"{text} ({code.name})")


def from_message(message: str, url: str) -> ClientError:
    """The error for a message inside a response, which carries no code."""
    text = one_line(message)
    if "unknown model" in text or "is not ready" in text:
        return ServerUnavailable(f"{url} does not serve this model: {text}")
    if "server is full" in text or "server is shutting down" in text:
        return ServerUnavailable(text)
    if "is not valid:" in text or _CORE_REFUSAL.match(message):
        return RequestRejected(text)
    return GenerationFailed(text)
