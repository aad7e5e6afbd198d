"""A command below a guard process (`server/guard.py`), as its launcher sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.errors import CannotStart
from server.remains import MARK

GUARD = Path(__file__).with_name("guard.py")

#: The launcher's own, also when they are sent to every process of the server: as a control group's manager does.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: How long a guard may take to end all that is below it before it is killed itself (it may have been stopped).
END_S = 3.0


class GuardedProcess:
    """Runs from its construction to its own end, to `end`, or to the end of this process.

    Args:
        command: program first, an absolute path.
        environment: of the command.
        log: gets what command and guard write, after what is there.
        prefix: of what is to be removed at the end (`server.remains`).

    Attributes:
        pid: of the command.

    Raises:
        CannotStart: the guard ended before it started the command.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, prefix: str) -> None:
        self._channel, theirs = socket.socketpair()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited by all that is below
        try:
            with theirs, log.open("ab") as output:
                self._guard = subprocess.Popen(
                    [sys.executable, "-IS", str(GUARD), str(os.getpid()), str(theirs.fileno()), prefix, *command],
                    env={**environment, MARK: prefix},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C on the terminal reaches the launcher only, which then drains
                )
        except OSError as error:
            self._channel.close()
            raise CannotStart(f"{sys.executable} could not be started: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._ending = threading.Lock()
        with self._channel.makefile("rb") as lines:
            first = lines.readline()
        if not first:
            self.end()
            raise CannotStart(f"the guard of {command[0]} ended before it started it (log: {log})")
        self.pid = int(first)

    @property
    def exit_code(self) -> int | None:
        """Of the command, minus the number of the signal that ended it; None while it runs."""
        status = self._guard.poll()
        return 128 - status if status is not None and status > 128 else status

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; False when `timeout_s` passed first."""
        try:
            self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """Kill the command with everything below it and return when it is gone."""
        with self._ending:
            if self._guard.poll() is None:
                self._guard.send_signal(signal.SIGCONT)  # it may have been stopped
            # Unlike a close, this reaches the guard also while a forked process has the descriptor.
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            if not self.wait(END_S):
                self._guard.kill()
                self._guard.wait()
            self._channel.close()
