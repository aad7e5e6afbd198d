"""How a client reaches a server: address, TLS, headers, keepalive and size limits, the same for sync and asyncio."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import ENSEMBLE
from vita_client.address import is_loopback, proxy_of, split_address

DEFAULT_URL = "localhost:8001"
DEFAULT_TIMEOUT_S = 120.0
DEFAULT_CONNECT_TIMEOUT_S = 5.0
#: A server that answers no ping is gone: noticed within interval + wait. A server ends a connection that pings too
#: often while it has nothing to send; at 40 s that takes 120 s of silence with the default settings of Triton
#: (--grpc-http2-min-recv-ping-interval-without-data=300000, --grpc-http2-max-ping-strikes=2).
KEEPALIVE_INTERVAL_S, KEEPALIVE_WAIT_S = 40.0, 10.0
#: The longest question after the longest history, 1320 s at 16 kHz as float32, are 84.5 MB.
DEFAULT_MAX_MESSAGE_BYTES = 96 * 1024 * 1024

_PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Tls:
    """Encrypt the connection. With `certificate` and `key` the client proves itself too (mutual TLS); PEM files.

    `root_ca` None trusts the machine's roots. `server_name` replaces the host name that the certificate must carry.
    """

    root_ca: _PathLike | None = None
    certificate: _PathLike | None = None
    key: _PathLike | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            InvalidRequest: a file cannot be read, or is no PEM file of its kind, or only one of certificate and key is
                given.
        """
        if (self.certificate is None) != (self.key is None):
            given = "certificate" if self.key is None else "key"
            raise InvalidRequest("TLS", given, "a client certificate and its key belong together", "give both or none")
        root_ca = _pem(self.root_ca, "root_ca", "CERTIFICATE")
        key = _pem(self.key, "key", "PRIVATE KEY")
        return grpc.ssl_channel_credentials(root_ca, key, _pem(self.certificate, "certificate", "CERTIFICATE"))


def _pem(path: _PathLike | None, name: str, kind: str) -> bytes | None:
    """The content of a file that holds something of a kind; of one that does not, gRPC says so when it connects only,
    in eight lines and without a name.
    """
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest("TLS", os.fspath(path), f"it cannot be read ({error.strerror})") from error
    if not re.search(rf"^-----BEGIN [A-Z0-9 ]*{kind}-----".encode(), content, re.MULTILINE):
        raise InvalidRequest("TLS", os.fspath(path), f"{name} has no line -----BEGIN {kind}-----", "convert it to PEM")
    if kind == "PRIVATE KEY" and b"ENCRYPTED" in content:
        raise InvalidRequest("TLS", os.fspath(path), f"{name} may have no passphrase", "decrypt it")
    return content


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything about the way to a server. `headers` go with every call; per-request headers are added to them."""

    url: str = DEFAULT_URL
    model: str = ENSEMBLE
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S
    keepalive_s: float = KEEPALIVE_INTERVAL_S
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        split_address(self.url)
        for name, value in (("connect_timeout_s", self.connect_timeout_s), ("keepalive_s", self.keepalive_s)):
            if not 0 < value <= 3600:
                raise InvalidRequest(name, value, "it is above 0 and at most 3600 seconds")

    @property
    def route(self) -> str:
        """The address as messages show it, with the proxy on the way to it."""
        proxy = proxy_of(split_address(self.url)[0])
        if proxy is None:
            return self.url
        return f"{self.url} (through the proxy {proxy[0]} of {proxy[1]}; name the host in no_proxy to go without)"

    def options(self) -> list[tuple[str, str | int]]:
        """gRPC channel arguments."""
        wait_ms = round(min(self.keepalive_s, KEEPALIVE_WAIT_S) * 1e3)
        options: list[tuple[str, str | int]] = [
            ("grpc.keepalive_time_ms", round(self.keepalive_s * 1e3)),
            ("grpc.keepalive_timeout_ms", wait_ms),
            # gRPC also pings to measure bandwidth, and a keepalive ping joins such a ping under way: same limit for it.
            ("grpc.http2.ping_timeout_ms", wait_ms),
            # A stream sends one message and then only listens: without this, gRPC stops pinging after two pings.
            ("grpc.http2.max_pings_without_data", 0),
            # The name is gRPC's; what it bounds is one attempt to connect.
            ("grpc.min_reconnect_backoff_ms", round(self.connect_timeout_s * 1e3)),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # A call is never sent twice behind the caller's back.
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            # Every client has its own connection, not one shared by all clients of the process.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if is_loopback(split_address(self.url)[0]):
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def metadata(self, extra: Mapping[str, str] | None = None) -> tuple[tuple[str, str], ...]:
        """Headers of one call, such as `traceparent` or `authorization`.

        Raises:
            InvalidRequest: field headers; gRPC would refuse the name or the value.
        """
        merged = {**self.headers, **(extra or {})}
        for name, value in merged.items():
            named = isinstance(name, str) and name.isascii() and name and set(name.lower()) <= _NAME_CHARACTERS
            if not named or name.lower().endswith("-bin"):
                raise InvalidRequest("headers", name, "a name has letters, digits, '-', '_', '.' and no ending -bin")
            if not isinstance(value, str) or not all(" " <= character <= "~" for character in value):
                raise InvalidRequest("headers", name, "its value is printable ASCII")
        return tuple((name.lower(), value) for name, value in merged.items())


_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")
