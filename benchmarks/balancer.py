"""HAProxy with the configuration of `deploy/haproxy/` on free loopback ports: start, ask, drain, stop."""

from __future__ import annotations

import csv
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from server.errors import CannotStart
from server.haproxy import Haproxy, find_haproxy

CONFIG = Path(__file__).resolve().parent.parent / "deploy" / "haproxy" / "haproxy.cfg"
SERVERS = ("a", "b")
NOT_INSTALLED = "haproxy is not installed (Debian: apt-get install haproxy)"


class BalancerError(Exception):
    """HAProxy is not installed, does not start, or does not take a command."""


class Balancer:
    """One HAProxy in front of two servers; a context manager.

    Args:
        servers: host:port of gRPC of server `a` and of server `b`.

    Raises:
        BalancerError: on entering, when it cannot be started.
    """

    def __init__(self, servers: Sequence[str]) -> None:
        if len(servers) != len(SERVERS):
            raise BalancerError(f"servers: {len(servers)} given, the configuration has {len(SERVERS)}")
        self._servers = tuple(servers)
        self.url = f"127.0.0.1:{free_port()}"
        self.status_url = f"127.0.0.1:{free_port()}"

    def __enter__(self) -> Balancer:
        program = find_haproxy()
        if program is None:
            raise BalancerError(NOT_INSTALLED)
        variables = {
            "VITA_BIND": self.url,
            "VITA_STATUS": self.status_url,
            "VITA_SERVER_A": self._servers[0],
            "VITA_SERVER_B": self._servers[1],
        }
        try:
            self._haproxy = Haproxy(program, CONFIG)
            self._haproxy.start(variables, self._haproxy.folder / "log")
        except CannotStart as error:
            raise BalancerError(str(error)) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._haproxy.stop()

    def servers(self) -> dict[str, dict[str, str]]:
        """Name -> HAProxy's figures: `status` (UP, DOWN, DRAIN ...), `scur` streams now, `stot` in all."""
        rows = csv.DictReader(self._haproxy.command("show stat vita 4 -1").removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "vita"}

    def streams(self, server: str) -> int:
        """Streams on a server now."""
        return int(self.servers()[server]["scur"])

    def set_state(self, server: str, state: str) -> None:
        """`drain`: no new streams. `ready`: as its health check says.

        Raises:
            BalancerError: HAProxy refuses.
        """
        answer = self._haproxy.command(f"set server vita/{server} state {state}").strip()
        if answer:
            raise BalancerError(f"set server vita/{server} state {state}: {answer}")

    def wait_for(self, server: str, status: str, timeout_s: float = 30.0) -> float:
        """Wait until the status of a server begins with `status`; the seconds it took.

        Raises:
            BalancerError: it did not within `timeout_s`.
        """
        start = time.monotonic()
        while not (seen := self.servers()[server]["status"]).startswith(status):
            if time.monotonic() - start > timeout_s:
                raise BalancerError(f"server {server} is {seen}, not {status}, after {timeout_s:g} s")
            time.sleep(0.02)
        return time.monotonic() - start


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
