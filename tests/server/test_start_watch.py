"""Model processes that end while they load, with processes that look like Triton's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.processes import STUB
from server.start_watch import StartWatch

#: Starts each of its arguments as a model process and waits for none of them, as a Triton that loads.
PARENT = f"""
import subprocess, sys, time
for model in sys.argv[1:]:
    print(subprocess.Popen(["/x/{STUB}", model], executable="/bin/sh").pid, flush=True)
time.sleep(600)
"""
PATIENCE_S = 60.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A parent, and its model processes `prompt` and `speech_lm`."""
    models = [tmp_path / name / "1" / "model.py" for name in ("prompt", "speech_lm")]
    for model in models:
        model.parent.mkdir(parents=True)
        model.write_text("while :; do sleep 0.1; done\n")
    command = [sys.executable, "-c", PARENT, *map(str, models)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in models]
    yield parent, children
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()


def test_the_model_and_the_signal_are_named(triton: tuple[subprocess.Popen[str], list[int]]) -> None:
    parent, (_, speech_lm) = triton
    watch = StartWatch(parent.pid)
    wait_for(lambda: watch.ended() is None and len(watch._seen) == 2)
    os.kill(speech_lm, signal.SIGKILL)
    wait_for(watch.ended)
    assert watch.ended() == "the process of model speech_lm ended by SIGKILL (out of memory?)"
    os.kill(parent.pid, signal.SIGKILL)  # and stays so when the process is reaped
    parent.wait()
    assert watch.ended() == "the process of model speech_lm ended by SIGKILL (out of memory?)"


def test_one_that_was_gone_before_it_was_seen_counts(triton: tuple[subprocess.Popen[str], list[int]]) -> None:
    parent, children = triton
    for child in children:
        os.kill(child, signal.SIGTERM)
    wait_for(StartWatch(parent.pid).ended)
    assert StartWatch(parent.pid).ended() == "a model process ended by SIGTERM"
