"""Errors with one readable line each: field, value, limit and remedy. Shared by server, client, builder."""

from __future__ import annotations


class VitaError(Exception):
    """Base of every error this project raises on purpose; its text is one line, fit to show to a user."""


class InvalidRequest(VitaError):
    """A request field is wrong. Travels as gRPC INVALID_ARGUMENT.

    Args:
        field: public name of the input, e.g. ``TOP_P``.
        value: what was sent (shortened in the message).
        limit: what is allowed, in words.
        remedy: what to do, in words (optional).
    """

    def __init__(self, field: str, value: object, limit: str, remedy: str = "") -> None:
        self.field, self.value, self.limit, self.remedy = field, value, limit, remedy
        shown = repr(value)
        if len(shown) > 60:
            shown = shown[:57] + "..."
        super().__init__(f"{field}: {shown} is not valid: {limit}" + (f"; {remedy}" if remedy else ""))


class ServerFull(VitaError):
    """No slot and no place in the queue. Travels as gRPC UNAVAILABLE."""

    def __init__(self, running: int, waiting: int) -> None:
        self.running, self.waiting = running, waiting
        super().__init__(f"server is full ({running} running, {waiting} waiting)")


class ServerStopping(VitaError):
    """The server takes no new streams because it is about to end. Travels as gRPC UNAVAILABLE."""

    def __init__(self) -> None:
        super().__init__("server is shutting down; ask again later, or another server")


class CheckpointError(VitaError):
    """A checkpoint folder is missing, truncated or does not have the expected keys and shapes (all are named)."""


class EngineError(VitaError):
    """Engines are missing, do not fit their manifest, or cannot run what was asked."""
