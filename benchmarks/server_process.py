"""`python -m server` as a child process: its processes by name, its metrics and memory, and what it leaves behind.

Benchmarks that break a server need it as an operator has it: from outside. It runs in a session of its own, so that a
signal to its group reaches it alone, and with a temporary folder of its own, so that every file left there is its.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from server.backend import STUB
from server.errors import CannotStart
from server.metrics import read_metrics
from server.processes import resident_bytes
from vita_audio.machine import ROOT

#: Every process below the launcher inherits this variable: even one that has lost its parents is found by it.
_MARK = "VITA_BENCHMARK_SERVER"
_URL, _METRICS = re.compile(r"gRPC\b.*? on ([\w.\[\]:-]+:\d+)"), re.compile(r"metrics on http://([\w.-]+):(\d+)/")
_POLL_S = 0.05
LAUNCHER, GUARD = "launcher", "guard"
_REGIONS = Path("/dev/shm")


@contextlib.contextmanager
def default_actions() -> Iterator[None]:
    """What is started here ignores no signal that drains a server, as `nohup` and background jobs of a shell do."""
    before = [(number, signal.signal(number, signal.SIG_DFL)) for number in (signal.SIGHUP, signal.SIGINT)]
    try:
        yield
    finally:
        for number, action in before:
            signal.signal(number, action)


class ServerProcess:
    """One server; a context manager that ends it, and all that is left of it, by force.

    Args:
        engines: folder made by `python -m build_engines`.
        arguments: further ones of `python -m server`; ports are picked by it.
        environment: further variables.
        prefix: a command that runs the launcher, such as `unshare`.
        temporary: name of the temporary folder inside the server's own.
    """

    def __init__(
        self,
        engines: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        temporary: str = "tmp",
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vita-benchmark-"))
        self.temporary = self.folder / temporary
        self.temporary.mkdir()
        self.log_file = self.folder / "triton.log"
        self._mark = secrets.token_hex(8)
        self._seen: dict[int, psutil.Process] = {}
        self.url = ""
        self._metrics = ("", 0)
        with default_actions(), (self.folder / "launcher.log").open("wb") as errors:
            self.launcher = subprocess.Popen(
                [
                    *prefix, sys.executable, "-m", "server", "--engines", str(engines.resolve()), "--grpc-port", "0",
                    "--metrics-port", "0", "--log-file", str(self.log_file), *arguments,
                ],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
                env={**os.environ, "TMPDIR": str(self.temporary), **(environment or {}), _MARK: self._mark},
            )  # fmt: skip

    @property
    def messages(self) -> str:
        """What the launcher wrote for its operator."""
        return (self.folder / "launcher.log").read_text(encoding="utf-8", errors="replace")

    def wait_ready(self, timeout_s: float = 120.0) -> ServerProcess:
        """Return when the launcher says where it listens.

        Raises:
            CannotStart: it ended, or did not say so in time; with its last line.
        """
        deadline_s = time.monotonic() + timeout_s
        while not (ready := re.search(r"^[\w -]+: ready after .*$", self.messages, re.MULTILINE)):
            ended = self.launcher.poll()
            if ended is not None or time.monotonic() > deadline_s:
                last = (self.messages.strip().splitlines() or ["it wrote nothing"])[-1]
                how = f"not ready after {timeout_s:g} s" if ended is None else f"ended with {ended}"
                raise CannotStart(f"the server is {how}: {last}" if ended is None else f"the server {how}: {last}")
            time.sleep(_POLL_S)
        url, metrics = _URL.search(ready[0]), _METRICS.search(ready[0])
        if url is None or metrics is None:
            raise CannotStart(f"the launcher does not say where it listens: {ready[0]}")
        self.url, self._metrics = url[1], (metrics[1], int(metrics[2]))
        self.processes()
        return self

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The living processes of the server by what they do: launcher, guard, tritonserver, haproxy, each model."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self._living():
            with contextlib.suppress(psutil.Error):
                name = self._name(process)
                self._seen[process.pid] = process
                found.setdefault(name, []).append(process)
        return found

    def signal_tree(self, number: signal.Signals) -> None:
        """To every process of it, as systemd does with a unit."""
        for process in self._living():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def metrics(self) -> dict[str, float]:
        """This project's metrics. Raises OSError when nothing answers."""
        return read_metrics(*self._metrics)

    def places(self) -> float:
        """Places taken. Raises OSError when nothing answers."""
        return self.metrics()["vita_places_taken"]

    def resident_mib(self) -> float:
        """Of the whole tree; shared pages are counted once."""
        return resident_bytes(self.launcher.pid) / 2**20

    def stop(self, timeout_s: float = 60.0) -> int | None:
        """SIGTERM to the launcher, and wait: its exit status; None when it had to be killed."""
        if self.launcher.poll() is None:
            self.launcher.terminate()
        try:
            return self.launcher.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def left(self) -> dict[str, list[str]]:
        """What there is of the server now: processes, regions of shared memory, files in its temporary folder."""
        processes = []
        for process in self._living():
            with contextlib.suppress(psutil.Error):
                processes.append(self._name(process))
        return {
            "processes": sorted(processes),
            "regions": [region.name for region in self._regions()],
            "files": sorted(str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*")),
        }

    def close(self) -> None:
        """End by force what still runs, and remove what it left."""
        for _ in range(3):  # a process that dies may have started another
            for process in self._living():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self.launcher.wait()
        for region in self._regions():
            if region.is_dir():
                shutil.rmtree(region, ignore_errors=True)
            else:
                region.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _living(self) -> list[psutil.Process]:
        """Of this server; zombies are not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.pid == self.launcher.pid or process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found

    def _name(self, process: psutil.Process) -> str:
        words = process.cmdline()
        if process.pid == self.launcher.pid:
            return LAUNCHER
        program = Path(words[0]).name if words else process.name()
        if program == STUB:
            return Path(words[1]).parts[-3]  # MODEL/VERSION/model.py
        return GUARD if any(Path(word).stem == GUARD for word in words) else program

    def _regions(self) -> list[Path]:
        """Files and folders in shared memory: their names begin with the process id of the launcher."""
        pids = {self.launcher.pid, *self._seen}
        return [region for region in _REGIONS.glob("vita_audio_*") if _owner(region.name) in pids]


def _owner(region: str) -> int:
    number = region.removeprefix("vita_audio_").split("_")[0]
    return int(number) if number.isdigit() else 0
