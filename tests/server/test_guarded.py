"""A guarded command: it and everything below it end with the launcher, whatever ends which of them."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server import guarded
from server.guarded import GuardedProcess
from server.options import ROOT
from server.processes import descendants, is_alive
from server.remains import kill_processes, processes_of
from server.start_watch import _dead_children

#: Ignores signals; has a child, one in a session of its own, one whose parent is gone, and a stopped one.
FAMILY = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
sleep = ["sleep", "1000"]
subprocess.Popen(sleep)
subprocess.Popen(sleep, start_new_session=True)
subprocess.run(["sh", "-c", "sleep 1000 &"])
subprocess.Popen(sleep).send_signal(signal.SIGSTOP)
print("begun", flush=True)
time.sleep(1000)
"""
LAUNCHER = """
import os, sys, time
from pathlib import Path
from server.guarded import GuardedProcess
process = GuardedProcess([sys.executable, "-c", sys.argv[1]], os.environ, Path(sys.argv[2]), sys.argv[3])
if os.fork() == 0:  # has every descriptor of the launcher, and outlives it
    time.sleep(60)
time.sleep(1000)
"""


def until(condition: Callable[[], object], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


@pytest.fixture
def prefix() -> Iterator[str]:
    prefix = f"vita_audio_test_{secrets.token_hex(4)}_"
    region = Path("/dev/shm") / f"{prefix}region"
    region.touch()
    yield prefix
    kill_processes(prefix)
    region.unlink(missing_ok=True)


def start(tmp_path: Path, prefix: str, script: str = FAMILY) -> GuardedProcess:
    log = tmp_path / "log"
    process = GuardedProcess([sys.executable, "-c", script], os.environ, log, prefix)
    if script == FAMILY:
        assert until(lambda: "begun" in log.read_text())
        assert until(lambda: len(processes_of(prefix)) == 1 + 1 + 4)
    return process


def nothing_left(prefix: str, seconds: float = 5) -> bool:
    return until(lambda: not processes_of(prefix) and not list(Path("/dev/shm").glob(f"{prefix}*")), seconds)


def files_stay(prefix: str) -> bool:
    """The launcher lives: the files are its own, and it may start the command again."""
    return until(lambda: not processes_of(prefix)) and (Path("/dev/shm") / f"{prefix}region").exists()


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(3)", 3), ("pass", 0), ("os.kill(os.getpid(), 11)", -11), ("os.kill(os.getpid(), 9)", -9)],
)
def test_the_exit_code_is_that_of_the_command(tmp_path: Path, prefix: str, end: str, code: int) -> None:
    process = start(tmp_path, prefix, f"import os, sys; {end}")
    assert process.wait(20)
    assert process.exit_code == code
    assert files_stay(prefix)
    process.end()  # once more does no harm


def test_a_command_that_ends_takes_all_below_it_along(tmp_path: Path, prefix: str) -> None:
    process = start(tmp_path, prefix)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(20)
    assert process.exit_code == -signal.SIGKILL
    assert files_stay(prefix)


def test_end_leaves_nothing(tmp_path: Path, prefix: str) -> None:
    process = start(tmp_path, prefix)
    assert not process.wait(0.1)
    assert process.exit_code is None
    process.end()
    assert process.exit_code == -signal.SIGKILL
    assert nothing_left(prefix, 0)


def test_signals_to_all_processes_reach_none_below_the_launcher(tmp_path: Path, prefix: str) -> None:
    process = start(tmp_path, prefix, "import time; print('begun', flush=True); time.sleep(1000)")
    assert until(lambda: "begun" in (tmp_path / "log").read_text())
    family = processes_of(prefix)
    for pid in family:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    assert not process.wait(0.5)
    assert processes_of(prefix) == family
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the launcher's own stay as they were
    process.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_launcher_that_ends_takes_all_along(tmp_path: Path, prefix: str, number: signal.Signals) -> None:
    log = tmp_path / "log"
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, FAMILY, str(log), prefix], cwd=ROOT)
    try:
        assert until(lambda: len(processes_of(prefix)) == 1 + 1 + 4 and "begun" in log.read_text())
        forked = [pid for pid in descendants(launcher.pid)[1:] if pid not in processes_of(prefix)]
        assert until(lambda: len(descendants(launcher.pid)) == 1 + 1 + 1 + 1 + 4 or not forked)
    finally:
        launcher.send_signal(number)
        launcher.wait()
    assert nothing_left(prefix)
    for pid in forked:
        assert is_alive(pid), "it was to show that its descriptors do not matter"
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def odd_name() -> Iterator[subprocess.Popen[bytes]]:
    """A process whose name Linux cut within a character."""
    code = "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, 'größenmessunü'.encode(), 0, 0, 0)"
    command = [sys.executable, "-c", f"{code}; print(flush=True); time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UnicodeDecodeError):
            Path(f"/proc/{process.pid}/comm").read_text(encoding="utf-8")
        yield process
        process.kill()


def test_names_of_other_processes_do_not_matter(tmp_path: Path, prefix: str, odd_name: subprocess.Popen[bytes]) -> None:
    assert odd_name.pid in descendants(os.getpid())
    assert is_alive(odd_name.pid)
    assert _dead_children(os.getpid()) == []
    arguments = [sys.executable, "-c", LAUNCHER, FAMILY, str(tmp_path / "log"), prefix]
    launcher = subprocess.Popen(arguments, cwd=ROOT, start_new_session=True)
    try:
        assert until(lambda: (tmp_path / "log").exists() and "begun" in (tmp_path / "log").read_text())
        launcher.kill()
        launcher.wait()
        assert nothing_left(prefix)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)  # what it forked


def test_a_killed_guard_takes_its_command_along(tmp_path: Path, prefix: str) -> None:
    process = start(tmp_path, prefix)
    os.kill(process._guard.pid, signal.SIGKILL)
    assert process.wait(20)
    assert process.exit_code == -signal.SIGKILL
    assert until(lambda: not is_alive(process.pid))
    assert kill_processes(prefix) == 4  # a stopped one among them
    process.end()


def test_a_stopped_guard_does_not_hold_up_the_end(tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "END_S", 0.2)
    process = start(tmp_path, prefix)
    os.kill(process._guard.pid, signal.SIGSTOP)
    process.end()
    assert until(lambda: not is_alive(process.pid))


def test_a_program_that_cannot_be_started_is_named_in_the_log(tmp_path: Path, prefix: str) -> None:
    log = tmp_path / "log"
    log.write_text("what was there before\n")
    process = GuardedProcess([str(tmp_path / "missing")], os.environ, log, prefix)
    assert process.wait(20)
    assert process.exit_code == 127
    earlier, line = log.read_text().splitlines()
    assert earlier == "what was there before"
    assert line == f"{tmp_path / 'missing'} could not be started: No such file or directory"


def test_the_command_has_no_descriptor_of_launcher_or_guard(tmp_path: Path, prefix: str) -> None:
    process = start(tmp_path, prefix, "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])")
    assert process.wait(20)
    assert (tmp_path / "log").read_text() == "[0, 1, 2]\n"
