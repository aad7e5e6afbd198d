"""Starts the real command `vita` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}", "TERM": "xterm", "COLUMNS": "80"}
#: Longest wait for a process, on a machine that does much else: starting Python alone may take 20 s there.
PATIENCE_S = 120.0


def start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    # A shell that starts the tests in the background has them, and all they start, ignore Ctrl-C. No `preexec_fn`: it
    # makes subprocess fork, and a fork beside the threads of a gRPC server aborts now and then.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "vita_client", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT, "cwd": ROOT, **options}
    return subprocess.Popen(command, **pipes)  # type: ignore[call-overload, no-any-return]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until the condition holds; a process that has ended before is a failure with its last words."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()[1]!r}")
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.02)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Exit code, standard output and standard error of a process, which is killed if it does not end."""
    try:
        out, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, out, errors
