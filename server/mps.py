"""NVIDIA's Multi-Process Service below one Triton: its model processes then share the GPU instead of taking turns.

    launcher ── guard ── nvidia-cuda-mps-control ── nvidia-cuda-mps-server    (begun by the first model that uses CUDA)
            ╰── guard ── tritonserver ── model processes

The daemon is this server's own, with pipes and logs in a folder of its own (`server.remains`): another daemon of the
machine is neither used nor ended. It lives as long as one Triton, so that an MPS server which a fault of one client has
broken for all of them is replaced with them.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from server.errors import CannotStart
from server.guarded import GuardedProcess
from server.log_file import end_of
from server.options import MPS_AUTO, MPS_OFF, ServerOptions
from server.processes import parent
from server.remains import MARK, Belongings
from server.shared_gpu import refusal, without_indices

CONTROL, SERVER = "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"

#: How long a daemon that was started may take to answer, and any question.
START_S, QUESTION_S = 20.0, 5.0
#: How long it gets to end by itself.
QUIT_S = 1.0
POLL_S = 0.05
#: What is kept of each of its logs, which go with its folder.
KEPT_BYTES = 4096

log = logging.getLogger(__name__)


def find_mps(options: ServerOptions) -> str | None:
    """The control program, if the server is to run under MPS.

    Raises:
        CannotStart: `on` is asked for and cannot be.
    """
    if options.mps == MPS_OFF:
        return None
    program = shutil.which(CONTROL)
    if options.mps == MPS_AUTO:
        wanted = options.on_gpu and program is not None and PIPES not in os.environ and refusal() is None
        return program if wanted else None
    if program is None:
        raise CannotStart(f"--mps: {CONTROL}, which comes with NVIDIA's driver, is no program on PATH: take --mps off")
    against = refusal()
    if against is not None:
        raise CannotStart(f"--mps: {against}; or take --mps off")
    return program


class Mps:
    """A control daemon, from its construction to `stop` or to the end of this process, however that ends.

    Args:
        program: what `find_mps` found.
        log_file: gets what the daemon writes.

    Raises:
        CannotStart: there is no room for its folder, or no process can be started.
    """

    def __init__(self, program: str, log_file: Path) -> None:
        self._program, self._log_file = program, log_file
        self._own = Belongings()
        self._folders = {PIPES: self._own.folder / "pipes", LOGS: self._own.folder / "logs"}
        self._environment = os.environ | {name: str(folder) for name, folder in self._folders.items()}
        try:
            for folder in self._folders.values():
                folder.mkdir(0o700)
            self._process = GuardedProcess([program, "-f"], self._environment, log_file, self._own.prefix)
        except BaseException:
            self._own.remove()
            raise

    def wait_until_ready(self) -> None:
        """Return when the daemon answers.

        Raises:
            CannotStart: it ended, or START_S passed.
        """
        deadline = time.monotonic() + START_S
        while self._ask("get_default_active_thread_percentage", QUESTION_S) is None:
            if self._process.exit_code is not None:
                raise CannotStart(
                    f"--mps: {self._program} ended (status {self._process.exit_code}): {self._last_words()}; take "
                    f"--mps off (log: {self._log_file})"
                )
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"--mps: {self._program} has not answered for {START_S:g} s: {self._last_words()}; take --mps off"
                )
            time.sleep(POLL_S)

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """`environment`, made that of a client of this daemon."""
        return without_indices(environment) | {name: str(folder) for name, folder in self._folders.items()}

    def processes(self, used: bool) -> dict[int, str]:
        """Processes without which its clients cannot go on, and the program of each.

        Args:
            used: there are clients, so there must be an MPS server.

        Raises:
            CannotStart: it does not answer any more, or it has no client: CUDA then works without MPS, unasked.
        """
        answer = self._ask("get_server_list", QUESTION_S)
        if answer is None:
            raise CannotStart(f"--mps: {self._program} does not answer any more: {self._last_words()}")
        servers = [int(line) for line in answer.split() if line.isdigit()]
        if used and not servers:
            raise CannotStart(
                f"--mps: CUDA came up without {SERVER}: {self._last_words()}; take --mps off (log: {self._log_file})"
            )
        daemon = self._process.pid
        return {parent(daemon): "the guard of MPS", daemon: CONTROL} | dict.fromkeys(servers, SERVER)

    def stop(self) -> None:
        """End it, after its clients, and remove its folder."""
        if self._process.exit_code is None:
            self._ask("quit", QUIT_S)
            self._process.wait(QUIT_S)
        self._keep_logs()  # first: the guard removes the folder
        self._process.end()
        self._own.remove()

    def _ask(self, line: str, timeout_s: float) -> str | None:
        """The daemon's answer to a command; None if there was none in time."""
        try:
            made = subprocess.run(
                [self._program],
                input=f"{line}\n",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                env=self._environment | {MARK: self._own.prefix},  # it goes with the rest
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return made.stdout.strip() if made.returncode == 0 else None

    def _last_words(self) -> str:
        """The last line that the MPS server or the daemon wrote."""
        written = [*sorted(self._folders[LOGS].glob("*.log"), reverse=True), self._log_file]  # server before control
        for file in written:
            lines = [line for line in _tail(file).splitlines() if line.strip()]
            if lines:
                return " ".join(lines[-1].split())
        return "it wrote nothing"

    def _keep_logs(self) -> None:
        """Append the ends of its logs to the server's."""
        try:
            with self._log_file.open("a") as kept:
                for file in sorted(self._folders[LOGS].glob("*.log")):
                    kept.write(f"-- {file.name} of MPS:\n{_tail(file)}\n")
        except OSError as error:
            log.warning("vita-audio server: the logs of MPS are lost: %s", error)


def _tail(file: Path) -> str:
    try:
        return end_of(file, KEPT_BYTES)
    except OSError:
        return ""
