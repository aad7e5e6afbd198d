"""`python -m gateway` as a child process: where it listens, what it uses of a core and of memory."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psutil

from server.errors import CannotStart
from vita_audio.machine import ROOT

_POLL_S, _START_S, _END_S = 0.05, 60.0, 20.0


class GatewayProcess:
    """A gateway on a free loopback port over the server at `server`; a context manager that ends it.

    Raises:
        CannotStart: it ended, or did not listen in time; with its last line.
    """

    def __init__(self, server: str, *arguments: str) -> None:
        self._log = Path(tempfile.mkstemp(prefix="vita-gateway-", suffix=".log")[1])
        with self._log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "--server", server, "--port", "0", *arguments],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
            )  # fmt: skip
        self._seen = psutil.Process(self._process.pid)
        try:
            self.url = self._listening()
        except CannotStart:
            self.close()
            raise

    async def share(self, seconds: float) -> float:
        """Of one core, over the next `seconds`; the loop of the caller goes on."""
        before, start_s = sum(self._seen.cpu_times()[:2]), time.perf_counter()
        await asyncio.sleep(seconds)
        return (sum(self._seen.cpu_times()[:2]) - before) / (time.perf_counter() - start_s)

    def resident_bytes(self) -> int:
        """What of its memory is in use now."""
        resident: int = self._seen.memory_info().rss
        return resident

    def close(self) -> None:
        """Let it drain; end it by force where that takes too long."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.unlink(missing_ok=True)

    def __enter__(self) -> GatewayProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _listening(self) -> str:
        deadline_s = time.monotonic() + _START_S
        while True:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            if url := listening(lines):
                return url
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise CannotStart(f"the gateway does not listen: {lines[-1] if lines else 'it wrote nothing'}")
            time.sleep(_POLL_S)


def listening(log: list[str]) -> str:
    """The address that a gateway's log names; empty before it does."""
    for line in log:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("event") == "listening":
            return str(record["url"])
    return ""
