"""Addresses and TCP ports of this machine: what a host name means, is it loopback, is a port free, which one is."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from dataclasses import replace
from typing import Any

from server.errors import CannotStart
from server.options import FREE_PORT, ServerOptions


def address_of(host: str, flag: str = "--host") -> str:
    """The address that a name stands for, an IPv4 one where it has both kinds: Triton's ports take no names.

    Raises:
        CannotStart: the name has no address.
    """
    return str(_socket_address(host, flag)[1][0])


def _socket_address(host: str, flag: str) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise CannotStart(
            f"{flag}: {host!r} has no address ({error}): give a name or an address of this machine, as 127.0.0.1 or ::1"
        ) from None
    family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def is_loopback(host: str, flag: str = "--host") -> bool:
    """Whether the address that `host` stands for is reachable from this machine only.

    Raises:
        CannotStart: the name has no address.
    """
    return ipaddress.ip_address(address_of(host, flag)).is_loopback


def url_of(host: str, port: int) -> str:
    """host:port as clients write it, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def claim_ports(options: ServerOptions) -> ServerOptions:
    """Check every asked port and put a free one in place of each 0.

    Raises:
        CannotStart: a port is taken, asked for twice, or out of range; names the flag and the port.
    """
    wanted: dict[str, tuple[str, str, int]] = {}
    if options.grpc_socket is None:  # else a front has the port
        wanted["grpc_port"] = ("--host", options.host, options.grpc_port)
    wanted["metrics_port"] = ("--metrics-host", options.metrics_host, options.metrics_port)
    if options.http_port is not None:
        wanted["http_port"] = ("--host", options.host, options.http_port)
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:  # all are held until all are known, so that no two are the same
        for name, (host_flag, host, port) in wanted.items():
            family, (address, _, *scope) = _socket_address(host, host_flag)
            flag = f"--{name.replace('_', '-')}"
            try:
                probe = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
                # Triton listens the same way: a port that only lingers after an earlier server (TIME_WAIT) is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port, *scope))
                probe.listen(1)
            except (OSError, OverflowError) as error:
                if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
                    raise CannotStart(f"{host_flag}: {host} is not an address of this machine") from None
                why = getattr(error, "strerror", None) or str(error)
                raise CannotStart(
                    f"{flag}: port {port} of {host} cannot be used ({why}): stop what listens there, or choose another "
                    f"({flag} {FREE_PORT} picks a free one)"
                ) from None
            chosen[name] = probe.getsockname()[1]
    return replace(
        options,
        grpc_port=chosen.get("grpc_port", options.grpc_port),
        metrics_port=chosen["metrics_port"],
        http_port=chosen.get("http_port"),
    )
