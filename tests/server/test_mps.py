"""MPS below a server, with a double of NVIDIA's daemon: a real process that speaks its lines, but has no GPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreground import Foreground, all_gone, foreground
from server import mps
from server.errors import CannotStart
from server.mps import CONTROL, LOGS, PIPES, SERVER, Mps, find_mps
from server.options import ROOT, ServerOptions
from server.processes import descendants, is_alive, model_processes
from vita_client import Client, ServerUnavailable
from waiting import until

#: Nearly every token is as likely as the one that would end the stream.
LONG: dict[str, Any] = {"text": "hello " * 100, "task": "tts", "mode": "vanilla", "max_tokens": 1024}
LONG |= {"temperature": 2.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 1, "timeout_s": 120}
DOUBLE = ROOT / "tests" / "helpers" / "mps"
LAUNCHER = """
import sys, time
from pathlib import Path
from server.mps import Mps
mps = Mps(sys.argv[1], Path(sys.argv[2]))
mps.wait_until_ready()
print(*mps.processes(True), flush=True)
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{DOUBLE}:{os.environ['PATH']}")
    monkeypatch.delenv(PIPES, raising=False)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Mps]:
    made = Mps(str(DOUBLE / CONTROL), tmp_path / "log")
    yield made
    made.stop()


def folders() -> set[Path]:
    return set(Path("/dev/shm").glob(f"vita_audio_{os.getpid()}_*"))


def test_a_daemon_of_its_own_answers_and_quits(tmp_path: Path) -> None:
    before = folders()
    daemon = Mps(str(DOUBLE / CONTROL), tmp_path / "log")
    daemon.wait_until_ready()
    (own,) = folders() - before
    processes = daemon.processes(used=True)
    assert list(processes.values()) == ["the guard of MPS", CONTROL, SERVER]
    daemon.stop()
    assert not any(is_alive(pid) for pid in processes)
    assert not own.exists()
    log = (tmp_path / "log").read_text()
    assert "-- control.log of MPS:\n[time Control] Starting control daemon\n[time Control] Quitting" in log


def test_clients_get_its_folders_and_no_numbers_of_gpus(daemon: Mps) -> None:
    got = daemon.environment({"HOME": "/", PIPES: "/tmp/nvidia-mps", "CUDA_VISIBLE_DEVICES": "1"})
    assert got.keys() == {"HOME", PIPES, LOGS}
    assert got[PIPES].startswith(f"/dev/shm/vita_audio_{os.getpid()}_")
    assert len(got[PIPES]) < 90  # a socket's path in it has at most 107


def test_a_daemon_that_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_DOUBLE", "broken")
    daemon = Mps(str(DOUBLE / CONTROL), tmp_path / "log")
    with pytest.raises(
        CannotStart, match=r"^--mps: \S+ ended \(status 1\): \[.*\] .*: Permission denied; take --mps off"
    ):
        daemon.wait_until_ready()
    daemon.stop()


def test_a_daemon_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_DOUBLE", "dumb")
    monkeypatch.setattr(mps, "START_S", 0.5)
    monkeypatch.setattr(mps, "QUESTION_S", 0.3)
    before = folders()
    daemon = Mps(str(DOUBLE / CONTROL), tmp_path / "log")
    until(lambda: "Starting" in daemon._last_words(), 60)
    with pytest.raises(CannotStart, match=r"^--mps: \S+ has not answered for 0.5 s: \[time Control\] Starting"):
        daemon.wait_until_ready()
    with pytest.raises(CannotStart, match="does not answer any more"):
        daemon.processes(used=False)
    daemon.stop()
    assert folders() == before


def test_a_daemon_that_does_not_quit_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_DOUBLE", "deaf")
    daemon = Mps(str(DOUBLE / CONTROL), tmp_path / "log")
    daemon.wait_until_ready()
    family = list(daemon.processes(used=True))
    begin = time.monotonic()
    daemon.stop()
    assert time.monotonic() - begin < 10
    assert not any(is_alive(pid) for pid in family)


def test_a_gpu_that_works_without_it_is_no_quiet_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_DOUBLE", "alone")
    daemon = Mps(str(DOUBLE / CONTROL), tmp_path / "log")
    daemon.wait_until_ready()
    assert SERVER not in daemon.processes(used=False).values()
    with pytest.raises(CannotStart, match=f"CUDA came up without {SERVER}"):
        daemon.processes(used=True)
    daemon.stop()


@pytest.mark.parametrize("victim", ["launcher", "guard", "daemon"])
def test_nothing_outlives_what_is_killed(tmp_path: Path, victim: str) -> None:
    command = [sys.executable, "-c", LAUNCHER, str(DOUBLE / CONTROL), str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        guard, daemon, server = family = [int(pid) for pid in launcher.stdout.readline().split()]
        os.kill({"launcher": launcher.pid, "guard": guard, "daemon": daemon}[victim], signal.SIGKILL)
        gone = [daemon] if victim == "guard" else family  # a server without its guard waits for the launcher's kill
        try:
            assert all_gone(gone, 5)
        finally:
            launcher.kill()
            if victim == "guard" and is_alive(server):
                os.kill(server, signal.SIGKILL)
    if victim == "launcher":
        assert not list(Path("/dev/shm").glob(f"vita_audio_{launcher.pid}_*"))


@pytest.mark.parametrize(
    ("options", "environment", "runs"),
    [
        ({"mps": "off", "profile": "gpu"}, {}, False),
        ({"mps": "on"}, {}, True),
        ({"mps": "on"}, {PIPES: "/tmp/other"}, True),
        ({"mps": "auto"}, {}, False),
        ({"mps": "auto", "profile": "gpu", "device": "cpu"}, {}, False),
        ({"mps": "auto", "profile": "gpu"}, {}, True),
        ({"mps": "auto", "profile": "gpu"}, {PIPES: "/tmp/other"}, False),  # the operator has chosen one
    ],
)
def test_when_it_runs(monkeypatch: pytest.MonkeyPatch, options: dict, environment: dict, runs: bool) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mps, "refusal", lambda: None)
    assert find_mps(ServerOptions(**options)) == (str(DOUBLE / CONTROL) if runs else None)


def test_where_the_program_is_missing_or_the_gpu_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    on, auto = (ServerOptions(mps=value, profile="gpu") for value in ("on", "auto"))
    monkeypatch.setattr(mps, "refusal", lambda: "NVIDIA T4 is in use")
    with pytest.raises(CannotStart, match=r"^--mps: NVIDIA T4 is in use; or take --mps off$"):
        find_mps(on)
    assert find_mps(auto) is None
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        CannotStart, match=f"^--mps: {CONTROL}, which comes with NVIDIA's driver, is no program on PATH"
    ):
        find_mps(on)
    assert find_mps(auto) is None


def helpers(server: Foreground) -> dict[str, int]:
    """The processes of MPS below a launcher."""
    found: dict[str, int] = {}
    for pid in descendants(server.process.pid):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text()
        except FileNotFoundError:  # it has ended meanwhile
            continue
        if "guard.py" not in line:
            found |= {name: pid for name in (CONTROL, SERVER) if name in line}
    return found


@pytest.mark.server
def test_a_server_comes_back_with_a_daemon_that_died_and_ends_with_it(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path, "--mps", "on") as server:
        url = server.url()
        for name in (CONTROL, SERVER):
            models, found = list(model_processes(server.process.pid)), helpers(server)
            environment = Path(f"/proc/{models[0]}/environ").read_bytes()
            assert f"{PIPES}=/dev/shm/vita_audio_{server.process.pid}_".encode() in environment
            with Client(url) as client:
                streams = [client.stream(**LONG) for _ in range(4)]  # they take too long to end by themselves
                next(streams[-1])
                os.kill(found[name], signal.SIGKILL)
                for stream in streams:
                    with pytest.raises(ServerUnavailable):
                        stream.collect()
            assert re.search(f"a process of .*{name}.* has ended: restarting", line := server.line()), line
            assert server.url() == url
            assert all_gone([*models, *found.values()], 5)
        with Client(url) as client:
            assert client.collect("Hi there.", max_tokens=8, timeout_s=60).tokens
        family = server.family()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert all_gone(family, 5)
        assert not list(Path("/dev/shm").glob(f"vita_audio_{server.process.pid}_*"))


@pytest.mark.server
def test_a_killed_launcher_takes_the_daemon_along(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path, "--mps", "on") as server:
        assert ", MPS; log in" in server.line()
        family = server.family()
        assert set(helpers(server)) == {CONTROL, SERVER}
        server.process.kill()
        assert all_gone(family, 5)
        assert not list(Path("/dev/shm").glob(f"vita_audio_{server.process.pid}_*"))


@pytest.mark.server
def test_a_start_is_refused_in_one_line(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPS_DOUBLE", "broken")
    with foreground(engines, tmp_path, "--mps", "on") as server:
        line = server.line()
        assert line.startswith(f"vita-audio server: cannot start: --mps: {DOUBLE / CONTROL} ended (status 1): [time")
        assert server.process.wait(10) == 1
        assert not list(Path("/dev/shm").glob(f"vita_audio_{server.process.pid}_*"))


@pytest.mark.server
def test_a_signal_ends_a_start_that_waits_for_the_daemon(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPS_DOUBLE", "dumb")
    with foreground(engines, tmp_path, "--mps", "on") as server:
        while SERVER not in helpers(server):
            assert server.process.poll() is None
            time.sleep(0.05)
        family = [pid for pid in server.family() if pid != server.process.pid]
        server.process.send_signal(signal.SIGTERM)
        assert "stopped before it was ready" in server.line()
        assert server.process.wait(10) == 1
        assert all_gone(family, 5)
        assert not list(Path("/dev/shm").glob(f"vita_audio_{server.process.pid}_*"))
