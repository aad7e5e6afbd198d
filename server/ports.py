"""TCP ports: is one free, which one is free, is an address loopback."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

from server.errors import CannotStart
from server.options import FREE_PORT, ServerOptions


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is reachable from this machine only.

    Raises:
        CannotStart: the name has no address.
    """
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise CannotStart(f"--host: {host!r} has no IPv4 address ({error}): give an address of this machine") from None
    return all(str(address[0]).startswith("127.") for *_, address in found)


def claim_ports(options: ServerOptions) -> ServerOptions:
    """Check every asked port and put a free one in place of each 0.

    Raises:
        CannotStart: a port is taken, asked for twice, or out of range; names the flag and the port.
    """
    wanted = {"metrics_port": (options.metrics_host, options.metrics_port)}
    if options.grpc_socket is None:  # else a front has the port
        wanted["grpc_port"] = (options.host, options.grpc_port)
    if options.http_port is not None:
        wanted["http_port"] = (options.host, options.http_port)
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:  # all are held until all are known, so that no two are the same
        for name, (host, port) in wanted.items():
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # Triton listens the same way: a port that only lingers after an earlier server (TIME_WAIT) is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            flag = f"--{name.replace('_', '-')}"
            try:
                probe.bind((host, port))
                probe.listen(1)
            except (OSError, OverflowError) as error:
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
