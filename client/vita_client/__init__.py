"""Streaming client of the `vita_audio` ensemble: library (`Client`, `AsyncClient`) and command line (`vita`)."""

from vita_audio.contract.errors import InvalidRequest, VitaError
from vita_client.aio import AsyncClient, AsyncStream
from vita_client.base import Health
from vita_client.channel import Connection, Tls
from vita_client.client import Client, Stream
from vita_client.conversation import AsyncConversation, Conversation
from vita_client.errors import (
    AccessDenied,
    BadResponse,
    ClientClosed,
    ClientError,
    DeadlineExceeded,
    GenerationFailed,
    RequestRejected,
    ServerUnavailable,
    StreamBroken,
    StreamCancelled,
)
from vita_client.events import Event, Metrics, Pcm, PromptIds, Reply, StatusUpdate, TextDelta, TokensDelta
from vita_client.reading import AsyncReading, Reading
from vita_client.request import Request, build_request
from vita_client.wav import WavWriter

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "AsyncConversation",
    "AsyncReading",
    "AsyncStream",
    "BadResponse",
    "Client",
    "ClientClosed",
    "ClientError",
    "Connection",
    "Conversation",
    "DeadlineExceeded",
    "Event",
    "GenerationFailed",
    "Health",
    "InvalidRequest",
    "Metrics",
    "Pcm",
    "PromptIds",
    "Reading",
    "Reply",
    "Request",
    "RequestRejected",
    "ServerUnavailable",
    "StatusUpdate",
    "Stream",
    "StreamBroken",
    "StreamCancelled",
    "TextDelta",
    "Tls",
    "TokensDelta",
    "VitaError",
    "WavWriter",
    "build_request",
]
