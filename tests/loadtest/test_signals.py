"""A load ends with the command that makes it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foreground import all_gone
from loadtest.report.files import read_figures
from loadtest_runs import ROOT, Known, wait_for
from server.processes import descendants

ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


def ended_by(number: signal.Signals, server: Known, module: str, *arguments: str) -> int:
    """The exit code of a command that gets the signal while its load runs; nothing of it is left."""
    # A shell that starts a command in the background has it ignore Ctrl-C.
    command = ["env", "--ignore-signal=INT", "--default-signal=HUP", sys.executable, "-m", module, "--url", server.url]
    path = f"{ROOT}{os.pathsep}{ROOT / 'client'}"
    run = subprocess.Popen([*command, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    family = [run.pid]
    try:
        wait_for(lambda: len(server.sent()) >= 3)
        family = descendants(run.pid)
        run.send_signal(number)
        run.wait(60)
        assert all_gone(family, timeout_s=60)
    finally:
        for pid in family:
            if descendants(pid):
                os.kill(pid, signal.SIGKILL)
        run.wait(60)
    return run.returncode


@pytest.mark.parametrize("number", ENDS)
def test_locust_ends_with_its_command_and_reports(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Known("even", tmp_path) as server:
        workers = ("--processes", "2") if number == signal.SIGKILL else ()
        code = ended_by(number, server, "loadtest", "--rate", "5", "--run-time", "600", "--out", str(out), *workers)
    assert code == (-number if number == signal.SIGKILL else 1)
    assert "stopped after" in read_figures(out)["aborted"]


@pytest.mark.parametrize("number", ENDS)
def test_the_load_of_a_search_ends_with_it(number: signal.Signals, tmp_path: Path) -> None:
    with Known("even", tmp_path) as server:
        rates = ("--lowest-rate", "5", "--point-seconds", "600")
        code = ended_by(number, server, "loadtest.capacity", *rates, "--out", str(tmp_path / "out"))
    assert code == (-number if number == signal.SIGKILL else 128 + number)
