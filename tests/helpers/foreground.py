"""`python -m server` as a user starts it, for tests: its lines, its processes, its end."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.server_process import default_actions
from server.options import ROOT
from server.processes import descendants


class Foreground:
    """`python -m server` as a user starts it; its words are read line by line. `metrics_port`: once it is ready."""

    def __init__(self, engines: Path, log: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "server", "--engines", str(engines), "--log-file", str(log), *arguments]
        ports = ["--grpc-port", "0", "--metrics-port", "0"]
        with default_actions():
            self.process = subprocess.Popen(
                [*command[:3], *ports, *command[3:]], cwd=ROOT, stderr=subprocess.PIPE, text=True
            )
        self.log = log

    def line(self) -> str:
        """The next one; not that of a sweep, which depends on what tests before and beside this one killed."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline().strip()
        return self.line() if "what dead servers left" in line else line

    def url(self) -> str:
        ready = self.line()
        found = re.search(r"ready (?:again )?after [\d.]+ s: gRPC on (\S+), metrics on http://\S+:(\d+)/", ready)
        assert found, ready
        self.metrics_port = int(found.group(2))
        return found.group(1)

    def family(self) -> list[int]:
        return descendants(self.process.pid)


@contextmanager
def foreground(engines: Path, tmp_path: Path, *arguments: str) -> Iterator[Foreground]:
    running = Foreground(engines, tmp_path / "log", *arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        assert running.process.stderr is not None
        running.process.stderr.close()


def all_gone(pids: list[int], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not any(descendants(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False
