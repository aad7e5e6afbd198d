"""Signals end a command through its `finally` blocks."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

COMMAND = """
import signal, time
from vita_audio.stopping import stop_on_signals
{before}
stop_on_signals()
try:
    print("begun", flush=True)
    time.sleep(30)
finally:
    print("cleaning", flush=True)
    time.sleep(0.5)
    print("cleaned", flush=True)
"""


def start(before: str = "signal.signal(signal.SIGHUP, signal.SIG_DFL)") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(before=before)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_cleaned_up_though_asked_twice(number: signal.Signals) -> None:
    process = start()
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    for again in (signal.SIGTERM, signal.SIGHUP):
        process.send_signal(again)
    assert process.communicate(timeout=10) == ("cleaned\n", "")
    assert process.returncode == 128 + number


def test_nohup_is_kept() -> None:
    process = start("signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "cleaning\ncleaned\n"
    assert process.returncode == 128 + signal.SIGTERM
