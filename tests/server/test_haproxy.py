"""HAProxy as a program: which one is taken, why one cannot start, that none outlives its launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fronts import Fronted
from server.errors import CannotStart
from server.front import Front, find_front
from server.options import ServerOptions
from server.ports import claim_ports

SECONDS = 30
needs_haproxy = pytest.mark.skipif(find_front("auto") is None, reason="haproxy is not installed")


@pytest.mark.parametrize("choice", ["/nowhere/haproxy", "pyproject.toml", "/", ""])
def test_a_path_that_is_no_program_is_refused(choice: str) -> None:
    assert find_front("off") is None
    with pytest.raises(CannotStart, match=f"--front: {choice} is not a program: give the path of HAProxy, auto or off"):
        find_front(choice)


@pytest.mark.parametrize(("said", "good"), [("2.8.0", True), ("3.0-dev1", True), ("2.6.12-1", False), ("1.9", False)])
def test_an_old_haproxy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, good: bool) -> None:
    program = tmp_path / "haproxy"
    program.write_text(f"#!/bin/sh\necho HAProxy version {said} 2026/10/17\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert (find_front("auto") == program) is good
    if good:
        assert find_front(str(program)) == program
    else:
        with pytest.raises(CannotStart, match=r"haproxy is not HAProxy 2\.8 or later"):
            find_front(str(program))


@needs_haproxy
def test_a_port_that_was_taken_meanwhile_is_named(tmp_path: Path) -> None:
    fronted = Fronted(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", fronted.port))
        other.listen()
        with pytest.raises(CannotStart, match=rf"HAProxy did not start: .*{fronted.port}"):
            fronted.front.start(fronted.log)
    assert not fronted.socket.parent.exists()  # type: ignore[union-attr]


def test_a_program_that_is_not_haproxy_is_named(tmp_path: Path) -> None:
    front = Front(Path("/bin/true"), claim_ports(ServerOptions(grpc_port=0, metrics_port=0)))
    with pytest.raises(CannotStart, match="/bin/true: HAProxy did not start: it gave no reason"):
        front.start(tmp_path / "log")


@needs_haproxy
def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from server.front import Front, find_front\nfrom server.options import ServerOptions\n"
        "from server.ports import claim_ports\n"
        "front = Front(find_front('auto'), claim_ports(ServerOptions(grpc_port=0, metrics_port=0)))\n"
        "front.start(Path(sys.argv[1])); print(front.pids[0], front.options.grpc_socket.parent, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        pid, folder = launcher.stdout.readline().decode().split()
        assert Path(folder).is_dir()
        launcher.kill()
    deadline = time.monotonic() + SECONDS
    while Path(f"/proc/{pid}").exists() or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
