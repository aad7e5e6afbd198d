"""A server's processes, shared memory and folder end with its launcher, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from foreground import Foreground, foreground
from server.front import find_front
from server.launch import TritonServer
from server.options import ROOT, ServerOptions
from server.processes import descendants, model_processes, parent
from triton_probe import LONG
from vita_client import Client, ServerUnavailable

pytestmark = pytest.mark.server

#: A program of its own with a server in it, as the demo and the benchmarks are; ends without a word to the server.
PROGRAM = """
import sys, time
from pathlib import Path
from server.launch import TritonServer
from server.options import ServerOptions
with TritonServer(ServerOptions(engines=Path(sys.argv[1]), grpc_port=0, metrics_port=0), Path(sys.argv[2])) as server:
    print(server.grpc_url, flush=True)
    time.sleep(1000)
"""
EXPECTED_S = 5.0


def files_of(launcher: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"vita_audio_{launcher}_*"))


def left(launcher: int, family: list[int], timeout_s: float = EXPECTED_S) -> tuple[list[int], list[Path]]:
    """Processes and files that are still there when the time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        rest = [pid for pid in family if descendants(pid)], files_of(launcher)
        if rest == ([], []) or time.monotonic() > deadline:
            return rest
        time.sleep(0.05)


@contextmanager
def program(engines: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", PROGRAM, str(engines), str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def loading(server: Foreground) -> list[int]:
    """All processes, once a model process is among them."""
    while not model_processes(server.process.pid):
        assert server.process.poll() is None
        time.sleep(0.02)
    return server.family()


def broken_after_s(client: Client, process: subprocess.Popen[str], number: signal.Signals) -> float:
    """Seconds from a signal to the error of a stream that is running."""
    stream = client.stream(**LONG)
    next(stream)
    process.send_signal(number)
    sent = time.monotonic()
    with pytest.raises(ServerUnavailable):
        stream.collect()
    return time.monotonic() - sent


def test_a_killed_launcher_breaks_streams_at_once_and_leaves_nothing(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server, Client(server.url()) as client:
        family = server.family()
        assert files_of(server.process.pid)
        assert broken_after_s(client, server.process, signal.SIGKILL) < 2
        assert left(server.process.pid, family) == ([], [])


def test_a_program_that_a_signal_ends_leaves_nothing(engines: Path, tmp_path: Path) -> None:
    with program(engines, tmp_path) as (process, url), Client(url) as client:
        family = descendants(process.pid)
        assert broken_after_s(client, process, signal.SIGTERM) < 2
        assert left(process.pid, family) == ([], [])


def test_a_launcher_that_is_killed_while_triton_loads_leaves_nothing(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server:
        family = loading(server)
        server.process.kill()
        assert left(server.process.pid, family) == ([], [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_drains(engines: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As the manager of a control group sends it: systemd, unless it is told otherwise."""
    with foreground(engines, tmp_path) as server, Client(server.url()) as client:
        stream = client.stream(**LONG | {"max_tokens": 200})
        next(stream)
        family = server.family()
        for pid in family:
            os.kill(pid, number)
        assert "draining" in server.line()
        with pytest.raises(ServerUnavailable) as refused:
            client.collect("Hello.", task="tts", max_tokens=8, timeout_s=20)
        assert refused.value.code == "shutting_down"
        reply = stream.collect()
        assert reply.status is not None
        assert reply.status.state == "done"
        assert server.process.wait(30) == 0
        assert left(server.process.pid, family) == ([], [])


def test_sigint_to_all_processes_ends_the_front_and_the_exit_status_says_so(engines: Path, tmp_path: Path) -> None:
    """HAProxy takes back the default action of SIGINT, and Linux lets no other process change that."""
    with foreground(engines, tmp_path, "--front", str(find_front("auto"))) as server, Client(server.url()) as client:
        stream = client.stream(**LONG)
        next(stream)
        family = server.family()
        for pid in family:
            os.kill(pid, signal.SIGINT)
        with pytest.raises(ServerUnavailable):
            stream.collect()
        assert server.process.wait(60) == 1
        assert left(server.process.pid, family) == ([], [])


def test_a_killed_guard_ends_the_server_and_its_launcher_removes_the_rest(engines: Path, tmp_path: Path) -> None:
    files = files_of(os.getpid())  # of servers that tests share
    server = TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0), tmp_path / "log")
    with server:
        guard = parent(server.pid)
        family = descendants(guard)
        os.kill(next(iter(model_processes(server.pid))), signal.SIGSTOP)
        os.kill(guard, signal.SIGKILL)
        assert server.wait(10)
        assert not server.running
    assert server.exit_code == -signal.SIGKILL
    assert left(os.getpid(), family, 2) == ([], files)


@pytest.mark.parametrize("front", ["off", "auto"])
def test_launcher_and_guard_killed_are_swept_at_the_next_start(engines: Path, tmp_path: Path, front: str) -> None:
    """A HAProxy that is left has the port that the next start asks for."""
    with foreground(engines, tmp_path, "--front", front) as server:
        port = server.url().rpartition(":")[2]
        family = server.family()
        stopped = next(iter(model_processes(server.process.pid)))
        os.kill(stopped, signal.SIGSTOP)
        guards = [pid for pid in family if "guard.py" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(guards) == 1 + (front != "off" and find_front(front) is not None)
        for pid in (server.process.pid, *guards):
            os.kill(pid, signal.SIGKILL)
        server.process.wait()
    with foreground(engines, tmp_path, "--grpc-port", port) as following:
        assert following.url().endswith(f":{port}")
        assert left(server.process.pid, family, 0) == ([], [])


def test_streams_that_end_when_the_drain_begins_arrive_whole(engines: Path) -> None:
    """All their data is with the clients before the processes are killed, also with those that read late."""
    number = 16
    begun = threading.Barrier(number + 1)
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=8, queue=number, exit_timeout_s=120)

    def run(max_tokens: int) -> str:
        with Client(server.grpc_url) as client, client.stream(**LONG | {"max_tokens": max_tokens}) as stream:
            next(stream)
            begun.wait(60)
            time.sleep(max_tokens % 3)
            reply = stream.collect()
            assert reply.status is not None
            return reply.status.state  # `collect` raises unless it was the last response

    with TritonServer(options) as server, ThreadPoolExecutor(number) as threads:
        replies = [threads.submit(run, 20 + 8 * i) for i in range(number)]
        begun.wait(60)
        server.stop()
        assert [reply.result() for reply in replies] == ["done"] * number
