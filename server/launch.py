"""A running Triton server as a context manager: check, start, wait until ready, drain, stop."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

from server.backend import assemble_backends, link_folders, link_libraries
from server.checks import check_options
from server.command import serving_settings, triton_arguments, triton_environment
from server.errors import CannotStart, refusals_named
from server.guarded import GuardedProcess
from server.locate import find_shared_python, find_triton
from server.log_file import written_since
from server.memory import held_bytes
from server.metrics import PLACES, STREAMS, read_metrics
from server.mps import Mps, find_mps
from server.options import ServerOptions
from server.ports import claim_ports, url_of
from server.processes import model_processes, resident_bytes
from server.readiness import wait_until_ready
from server.remains import Belongings, remove_environments, sweep
from server.resources import check_log_file, check_resources, new_log_file
from server.start_watch import StartWatch
from server.stub_python import assemble_python
from serving.admission import AdmissionRecord
from serving.seal import new_secret

#: Longer than the models take to refresh their metrics (0.2 s).
DRAIN_POLL_S = 0.25


class TritonServer:
    """One server; use it as a context manager, or `start` and `stop` it.

    Example::

        with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0)) as server:
            client = Client(server.grpc_url)

    Args:
        restarts: how often a server in whose place this one starts has failed, for its metrics.

    Attributes:
        options: what runs; ports that were 0 have their number after `start`.
        start_seconds: time from process start to ready.
        admission: whether it is full or drains, at this moment; None until `start`.
        heartbeats: folder in which its model processes show that their threads turn (`serving.heartbeat`).
        secret: seals the messages between its models.
        helpers: processes beside Triton's without which it cannot go on, and what each is; known once it is ready.
    """

    def __init__(self, options: ServerOptions, log_file: Path | None = None, restarts: int = 0) -> None:
        self.options = options
        self._log_file = log_file
        self._log_begin = 0
        self._restarts = restarts
        self.start_seconds = 0.0
        self._belongings: Belongings | None = None
        self._triton: GuardedProcess | None = None
        self._mps: Mps | None = None
        self._changing = threading.RLock()  # starts and kills; may come from different threads
        self._models: dict[int, str] = {}
        self.helpers: dict[int, str] = {}
        self.heartbeats = Path()
        self.admission: AdmissionRecord | None = None
        self.secret = new_secret()

    @property
    def log_file(self) -> Path:
        """What Triton and the models wrote; it stays after `stop`. Default: a new file in the temporary folder.

        A file that exists is continued.
        """
        if self._log_file is None:
            self._log_file = new_log_file()
        return self._log_file

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint."""
        return url_of(self.options.host, self.options.grpc_port)

    @property
    def metrics_url(self) -> str:
        """Prometheus metrics."""
        return f"http://{url_of(self.options.metrics_host, self.options.metrics_port)}/metrics"

    @property
    def http_url(self) -> str | None:
        """host:port of the HTTP endpoint, None while it is off."""
        return None if self.options.http_port is None else url_of(self.options.host, self.options.http_port)

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        if self._triton is None:
            raise CannotStart("the server was not started: call start() first")
        return self._triton.pid

    @property
    def running(self) -> bool:
        return self._triton is not None and self._triton.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """Of tritonserver, minus the number of the signal that ended it; None while it runs."""
        return None if self._triton is None else self._triton.exit_code

    @property
    def under_mps(self) -> bool:
        return self._mps is not None

    def log(self) -> str:
        """The log so far, without what an earlier server wrote into the same file."""
        return written_since(self.log_file, self._log_begin)

    def resident_bytes(self) -> int:
        """Resident memory of tritonserver and all its model processes, shared pages counted once."""
        return resident_bytes(self.pid)

    def held_bytes(self) -> int:
        """Memory that only its end gives back, cheaply read: mapped files are not in it. It has been started."""
        prefix = self._belongings.prefix if self._belongings else None
        return held_bytes([self.pid, *self._models], prefix)

    @refusals_named()
    def start(self) -> TritonServer:
        """Check everything, start, return when the ensemble answers.

        Raises:
            CannotStart: a check failed, or Triton ended or hung while it loaded; one line says why.
        """
        check_options(self.options)
        sweep()
        check_resources(self.options)
        begin, begin_unix_s = time.monotonic(), time.time()
        try:
            mps = self._start_mps()
            with self._changing:
                if self._mps is not mps:
                    raise CannotStart("it was ended while it started")
                self._launch()
            lost = StartWatch(self.pid).ended
            wait_until_ready(self.options, lambda: not self.running, lost, self.log_file, self._log_begin)
            self.helpers = mps.processes(self.options.on_gpu) if mps is not None else {}
        except BaseException:
            self.kill()
            raise
        finally:
            remove_environments(begin_unix_s)
        self._models = model_processes(self.pid)
        self.start_seconds = time.monotonic() - begin
        return self

    def _start_mps(self) -> Mps | None:
        """The daemon that the models are to share the GPU through, once it answers; None if there is to be none."""
        with self._changing:
            self._log_begin = check_log_file(self.log_file)
            program = find_mps(self.options)
            mps = self._mps = Mps(program, self.log_file) if program is not None else None
        if mps is not None:
            mps.wait_until_ready()
        return mps

    def _launch(self) -> None:
        triton = find_triton()
        shared_python = find_shared_python(triton.stub)
        self.options = claim_ports(self.options)
        self._belongings = own = Belongings()
        folders = [*triton.library_folders, *([shared_python] if shared_python else [])]
        libraries, linked = link_libraries(folders, own.folder), link_folders(self.options, own.folder)
        backends, stub_python = assemble_backends(triton, own.folder), assemble_python(own.folder)
        self.admission = AdmissionRecord(own.folder / "admission")
        self.heartbeats = own.folder / "heartbeats"
        self.heartbeats.mkdir()
        arguments = triton_arguments(linked, triton, backends, own.prefix)
        settings = serving_settings(linked, own.folder, self.secret, self._restarts)
        environment = triton_environment(settings, stub_python, libraries)
        if self._mps is not None:
            environment = self._mps.environment(environment)
        self._triton = GuardedProcess(arguments, environment, self.log_file, own.prefix)

    def live_streams(self) -> int:
        """Streams in any stage, running or waiting, and those whose last sound is on its way (they have a place).

        Raises:
            OSError: the server does not answer.
        """
        metrics = read_metrics(self.options.metrics_host, self.options.metrics_port)
        return int(sum(value for name, value in metrics.items() if name.startswith((STREAMS, PLACES))))

    def refuse(self) -> None:
        """Take no new streams from now on."""
        if self.admission is not None:
            self.admission.drain()

    def drain(self) -> bool:
        """Take no new streams and wait for the running ones, at most `exit_timeout_s`. False when some are left."""
        self.refuse()
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
        """Wait for the end; False when `timeout_s` passed first, or when it was not started."""
        return self._triton is not None and self._triton.wait(timeout_s)

    def stop(self) -> None:
        """Drain, and kill what is left. Does nothing if it was not started."""
        if self.running:
            self.drain()
        self.kill()

    def kill(self) -> None:
        """End it now, with all its model processes, and remove what they leave."""
        with self._changing:
            if self._triton is not None:
                self._triton.end()
            if self._mps is not None:
                self._mps.stop()
                self._mps = None
            if self._belongings is not None:
                self._belongings.remove()
                self._belongings = None

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
