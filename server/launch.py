"""A running Triton server as a context manager: check, start, wait until ready, drain, stop."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from server.backend import assemble_backends
from server.checks import check_options
from server.command import triton_arguments, triton_environment
from server.errors import CannotStart
from server.locate import find_shared_python, find_triton
from server.metrics import STREAMS, read_metrics
from server.options import ServerOptions
from server.ports import claim_ports
from server.processes import is_alive, model_processes, remove_shared_memory, resident_bytes
from server.readiness import wait_until_ready
from server.stub_python import assemble_python
from serving.admission import AdmissionRecord
from serving.seal import new_secret

CHILD = Path(__file__).with_name("child.py")

#: What unloading may take before it is cut short. Nothing can be lost any more, but Triton takes 1.1 s for each model
#: process, one after the other; and for ever (seen in 2.51) if a client cancelled a call that Triton had refused.
UNLOAD_S = 1.5
#: Longer than the models take to refresh their metrics (0.2 s).
DRAIN_POLL_S = 0.25


class TritonServer:
    """One server; use it as a context manager, or `start` and `stop` it.

    Example::

        with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0)) as server:
            client = VitaClient(server.grpc_url)

    Args:
        restarts: how often a server was started before in place of which this one starts: it goes on with its log.

    Attributes:
        options: what runs; ports that were 0 have their number after `start`.
        start_seconds: time from process start to ready.
        admission: whether it is full or drains, at this moment; None until `start`.
        secret: seals the messages between its models.
    """

    def __init__(self, options: ServerOptions, log_file: Path | None = None, restarts: int = 0) -> None:
        self.options = options
        self._log_file = log_file
        self._restarts = restarts
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._start_error: OSError | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        self._cleanup = contextlib.ExitStack()
        self._models: dict[int, str] = {}
        self.admission: AdmissionRecord | None = None
        self.secret = new_secret()
        self._shared_memory_prefix = f"vita_audio_{os.getpid()}_{secrets.token_hex(4)}_"

    @property
    def log_file(self) -> Path:
        """What Triton and the models wrote (default: a new file in the temporary folder); it stays after `stop`."""
        if self._log_file is None:
            handle, name = tempfile.mkstemp(prefix="vita-audio-server-", suffix=".log")
            os.close(handle)
            self._log_file = Path(name)
        return self._log_file

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.options.host}:{self.options.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Prometheus metrics."""
        return f"http://{self.options.metrics_host}:{self.options.metrics_port}/metrics"

    @property
    def http_url(self) -> str | None:
        """host:port of the HTTP endpoint, None while it is off."""
        return None if self.options.http_port is None else f"{self.options.host}:{self.options.http_port}"

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        if self._process is None:
            raise CannotStart("the server was not started: call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and not self._ended.is_set()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode if self._process is not None and self._ended.is_set() else None

    def log(self) -> str:
        """The log so far."""
        return self.log_file.read_text(errors="replace")

    def resident_bytes(self) -> int:
        """Resident memory of tritonserver and all its model processes, shared pages counted once."""
        return resident_bytes(self.pid)

    def start(self) -> TritonServer:
        """Check everything, start, return when the ensemble answers.

        Raises:
            CannotStart: a check failed, or Triton ended or hung while it loaded; one line says why.
        """
        check_options(self.options)
        triton = find_triton()
        shared_python = find_shared_python(triton.stub)
        self.options = claim_ports(self.options)
        folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vita-audio-server-")))
        backends = assemble_backends(triton, folder)
        stub_python = assemble_python(folder)
        libraries = [*triton.library_folders, *([shared_python] if shared_python else [])]
        self.admission = AdmissionRecord(folder / "admission")
        arguments = triton_arguments(self.options, triton, backends, self._shared_memory_prefix)
        environment = triton_environment(self.options, stub_python, libraries, folder / "admission", self.secret)
        begin = time.monotonic()
        threading.Thread(target=self._keep, args=(arguments, environment), name="triton-keeper", daemon=True).start()
        try:
            self._started.wait()
            if self._start_error is not None:
                raise CannotStart(f"{triton.binary} could not be started: {self._start_error}")
            wait_until_ready(self.options, self._ended.is_set, self.log_file)
        except BaseException:
            self.kill()
            raise
        self._models = model_processes(self.pid)
        self.start_seconds = time.monotonic() - begin
        return self

    def lost_models(self) -> list[str]:
        """Models of which a process has ended. Triton (2.51) starts none again and goes on calling itself ready."""
        return sorted({model for pid, model in self._models.items() if not is_alive(pid)})

    def live_streams(self) -> int:
        """Streams in any stage, running or waiting.

        Raises:
            OSError: the server does not answer.
        """
        metrics = read_metrics(self.options.metrics_host, self.options.metrics_port)
        return int(sum(value for name, value in metrics.items() if name.startswith(STREAMS)))

    def drain(self) -> bool:
        """Take no new streams and wait for the running ones, at most `exit_timeout_s`. False when some are left."""
        if self.admission is not None:
            self.admission.drain()
        deadline = time.monotonic() + self.options.exit_timeout_s
        idle = 0
        while idle < 2:  # twice, because a stream may be on its way from one stage to the next
            if self.wait(DRAIN_POLL_S):
                return True
            try:
                live = self.live_streams()
            except OSError:
                live = 1
            idle = 0 if live else idle + 1
            if live and time.monotonic() > deadline:
                return False
        return True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; False when `timeout_s` passed first."""
        return self._ended.wait(timeout_s)

    def stop(self) -> None:
        """Drain and wait; what does not end in time is killed. Does nothing if it was not started."""
        if self.running:
            self.drain()
            self._signal(signal.SIGTERM)
            self.wait(UNLOAD_S)
        self.kill()

    def kill(self) -> None:
        """End it now, with all its model processes, and remove what they leave."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._ended.wait()
        remove_shared_memory(self._shared_memory_prefix)
        self._cleanup.close()

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _keep(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Start the process and wait for its end in one thread: Linux ends the child with the thread that made it."""
        try:
            with self.log_file.open("ab" if self._restarts else "wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", str(CHILD), str(os.getpid()), *arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C on the terminal reaches the launcher only, which then drains
                )
        except OSError as error:
            self._start_error = error
            self._started.set()
            return
        self._started.set()
        pid = self._process.pid
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # model processes that a crashed or killed server left behind
        self._process.wait()
        self._ended.set()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
