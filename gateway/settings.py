"""Settings of a gateway: addresses, bounds, keys, TLS. One frozen object."""

from __future__ import annotations

from dataclasses import dataclass

from vita_client.channel import DEFAULT_URL

DEFAULT_PORT = 8080
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one gateway.

    Args:
        servers: gRPC addresses (HOST:PORT) of servers with the same checkpoint.
        host, port: where the gateway listens; port 0 picks a free one.
        wyoming_host, wyoming_port: the same for Wyoming, which has no keys; None: it is not served.
        max_body_bytes: of one request; larger ones get 413.
        request_timeout_s: of one answer, from the request to its last sound; the server stops working on it then, too.
    """

    servers: tuple[str, ...] = (DEFAULT_URL,)
    host: str = LOOPBACK
    port: int = DEFAULT_PORT
    wyoming_host: str = LOOPBACK
    wyoming_port: int | None = None
    max_body_bytes: int = 32 << 20
    request_timeout_s: float = 300.0
