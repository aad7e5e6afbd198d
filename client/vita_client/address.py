"""The address of a server: host:port, checked, and the proxy that the environment puts in front of it."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit

from vita_audio.contract.errors import InvalidRequest

#: A proxy comes from the first of these that is set; gRPC looks at no other, and at none in upper case.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXEMPT_VARIABLES = ("no_grpc_proxy", "no_proxy")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def split_address(url: str) -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port of `host:port`.

    Raises:
        InvalidRequest: field url; the remedy says what to write instead.
    """

    def wrong(remedy: str) -> InvalidRequest:
        return InvalidRequest("url", url, "it has the form host:port", remedy)

    scheme, separator, _ = url.partition("://")
    if separator and _NAME.fullmatch(scheme):
        raise wrong(f"leave out {scheme}://" + (" and set tls" if scheme.endswith("s") else ""))
    host, colon, port = url.rpartition(":")
    if url.startswith("[") or _is_ipv6(url) or _is_ipv6(host):
        bare = host[1:-1]
        if host != f"[{bare}]" or not _is_ipv6(bare):
            raise wrong("an IPv6 address is written [::1]:8001")
        host = bare
    elif not colon and _NAME.fullmatch(url):
        raise wrong(f"add the port, for example {url}:8001")
    elif not _NAME.fullmatch(host):
        raise wrong("for example localhost:8001")
    if not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
        raise wrong("a port is a number from 1 to 65535")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by its name or address: localhost, 127.0.0.0/8, ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def proxy_of(host: str) -> tuple[str, str] | None:
    """The proxy that gRPC goes through to `host`: its address, without credentials, and the variable that names it."""
    variable = _first_set(_PROXY_VARIABLES)
    exempt = os.environ.get(_first_set(_EXEMPT_VARIABLES), "").split(",")
    if not variable or is_loopback(host) or any(_matches(host, entry.strip()) for entry in exempt):
        return None
    try:
        proxy = urlsplit(os.environ[variable])
    except ValueError:
        return None
    return (proxy.netloc.rpartition("@")[2], variable) if proxy.scheme == "http" else None


def _first_set(names: tuple[str, ...]) -> str:
    return next((name for name in names if name in os.environ), "")


def _matches(host: str, entry: str) -> bool:
    """Whether an entry of no_proxy, the end of a name or a network, covers the host."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and host.lower().endswith(entry.lower())


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
