"""Settings of a gateway: addresses, bounds, keys, TLS. One frozen object."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vita_audio.contract.errors import InvalidRequest
from vita_client import Tls
from vita_client.address import is_loopback, split_address
from vita_client.channel import DEFAULT_URL

DEFAULT_PORT = 8080
LOOPBACK = "127.0.0.1"
#: A server takes no longer deadline (`vita_client`), and the kernel counts its own in 32 bits of milliseconds.
_LONGEST_S = 86_400.0
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?/?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one gateway.

    Args:
        servers: gRPC addresses (HOST:PORT) of servers with the same checkpoint.
        server_names: NAME:PORT whose addresses are servers, too, asked for again and again.
        server_tls: how they are reached by TLS; None: without.
        host, port: where the gateway listens; port 0 picks a free one.
        wyoming_host, wyoming_port: the same for Wyoming, which has no keys; None: it is not served.
        tls_certificate, tls_key: PEM files; None: HTTP.
        keys: file of API keys (`gateway/keys.py`); None: all callers may use it.
        open_access: other machines may use what has no keys.
        origins: pages of other origins that may use it, such as ``https://app.example.com``; kept as browsers write
            them.
        host_names: names in addresses of the gateway, beside localhost, that are used without keys; kept in lower case.
        max_requests: requests and WebSockets at the same time; more get 503.
        max_body_bytes: of one request; larger ones get 413.
        body_timeout_s: how long a body may take to come; longer ones get 408.
        request_timeout_s: of one answer, from the request to its last sound; the server stops working on it then, too.
        write_timeout_s: how long a caller may take nothing of its answer before the connection is ended. These three:
            a day at most.
        drain_timeout_s: how long running requests may go on after a stop was asked for.

    Raises:
        InvalidRequest: names the setting.
    """

    servers: tuple[str, ...] = (DEFAULT_URL,)
    server_names: tuple[str, ...] = ()
    server_tls: Tls | None = None
    host: str = LOOPBACK
    port: int = DEFAULT_PORT
    wyoming_host: str = LOOPBACK
    wyoming_port: int | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    keys: Path | None = None
    open_access: bool = False
    origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    max_requests: int = 256
    max_body_bytes: int = 32 << 20
    body_timeout_s: float = 30.0
    request_timeout_s: float = 300.0
    write_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        given = (*self.servers, *self.server_names)
        for address in given:
            split_address(address)
        if not given or len(set(given)) < len(given):
            raise InvalidRequest("server", given, "it is one address or several, each once")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidRequest("tls", None, "a certificate and its key belong together", "give both or none")
        for name, file in (("tls_certificate", self.tls_certificate), ("tls_key", self.tls_key)):
            if file is not None and not file.is_file():
                raise InvalidRequest(name, str(file), "there is no such file")
        for name in ("max_requests", "max_body_bytes"):
            if not getattr(self, name) > 0:
                raise InvalidRequest(name, getattr(self, name), "it is above 0")
        for name in ("body_timeout_s", "request_timeout_s", "write_timeout_s"):
            if not 0 < getattr(self, name) <= _LONGEST_S:
                limit = f"it is above 0 and at most {_LONGEST_S:g} seconds"
                raise InvalidRequest(name, getattr(self, name), limit)
        if not self.drain_timeout_s >= 0:
            raise InvalidRequest("drain_timeout_s", self.drain_timeout_s, "it is 0 or more")
        object.__setattr__(self, "origins", tuple(map(_origin, self.origins)))
        object.__setattr__(self, "host_names", tuple(map(_host_name, self.host_names)))
        self._check_reach()

    def _check_reach(self) -> None:
        """Other machines reach only what has keys, unless the settings say otherwise."""
        open_hosts = [("wyoming_host", self.wyoming_host)] if self.wyoming_port is not None else []
        if self.keys is None:
            open_hosts.append(("host", self.host))
        for name, host in open_hosts:
            if not self.open_access and not is_loopback(host):
                raise InvalidRequest(
                    name,
                    host,
                    "other machines could use it without a key",
                    "give --keys FILE (Wyoming has none), or --open-access where the network is trusted",
                )


def _origin(given: str) -> str:
    """An origin as browsers write it: lower case, no slash, no port that its scheme has anyway.

    Raises:
        InvalidRequest: it is none.
    """
    if given == "null":  # of pages in files
        return given
    if (match := _ORIGIN.fullmatch(given.lower())) is None:
        limit = "it is the origin of pages, such as https://app.example.com"
        raise InvalidRequest("origin", given, limit, "give --origin once for each, without a path")
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS.get(scheme)) else port)


def _host_name(given: str) -> str:
    """A name as it is compared. Raises InvalidRequest."""
    if not re.fullmatch(r"[a-z0-9._-]+", name := given.lower()):
        limit = "it is one name, such as voice.example.com"
        raise InvalidRequest("host_name", given, limit, "leave out scheme and port, and give --host-name once for each")
    return name
