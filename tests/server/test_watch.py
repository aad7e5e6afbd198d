"""What is seen of an incarnation: deaths, stops, threads that hang, questions without an answer. Without Triton."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server import watch
from server.canary import Canary
from server.options import ServerOptions, TlsFiles
from server.watch import Watch
from serving.heartbeat import Heartbeats
from serving.seal import new_secret

LIMIT_S = 1.0


class Incarnation:
    """A sleeping process in place of tritonserver, whose port answers nothing."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.pid, self.heartbeats, self.secret = self.process.pid, folder, new_secret()
        self.options: Any = ServerOptions(grpc_port=1, metrics_port=1)
        self.exit_code = -9
        self.helpers: dict[int, str] = {}

    def wait(self, timeout_s: float) -> bool:
        return self.process.poll() is not None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Incarnation]:
    made = Incarnation(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def first_fault(watched: Watch, seconds: float) -> str | None:
    """Ask for a while, as the supervisor does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (fault := watched.fault()) is not None:
            return fault
        time.sleep(0.02)
    return None


def test_a_death_is_seen_and_named(server: Incarnation) -> None:
    with Watch(server, 0) as watched:  # type: ignore[arg-type]
        assert watched.fault() is None
        server.process.kill()
        assert first_fault(watched, 20) == "tritonserver has ended (status -9)"


def test_a_watch_that_is_over_holds_no_file_of_its_incarnation(server: Incarnation) -> None:
    """At once, not when the interpreter next looks for cycles: one comes with every restart."""
    Heartbeats(server.heartbeats / "prompt_0_1")
    files = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        watched = Watch(server, 3600)  # type: ignore[arg-type]
        with watched:
            assert len(os.listdir("/proc/self/fd")) > files
            gone = weakref.ref(watched)
        del watched
        assert gone() is None
    finally:
        gc.enable()


def test_a_model_process_that_ended_before_the_watch_began_is_missing(server: Incarnation) -> None:
    Heartbeats(server.heartbeats / "prompt_0_1")
    with Watch(server, 0) as watched:  # type: ignore[arg-type]
        assert watched.fault() == "a process of prompt has ended"


def test_a_stopped_process_is_a_fault_after_a_while_only(server: Incarnation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STOPPED_S", 0.5)
    with Watch(server, 3600) as watched:  # type: ignore[arg-type]
        os.kill(server.pid, signal.SIGSTOP)
        assert first_fault(watched, 0.2) is None
        os.kill(server.pid, signal.SIGCONT)
        assert first_fault(watched, 0.2) is None
        os.kill(server.pid, signal.SIGSTOP)
        assert first_fault(watched, 20) == "a process of tritonserver is stopped"


def test_a_thread_that_does_not_turn_is_a_fault_and_one_that_does_is_none(server: Incarnation) -> None:
    pulse = Heartbeats(server.heartbeats / "other").pulse("prober")
    with Watch(server, LIMIT_S) as watched:  # type: ignore[arg-type]
        watched._missing.clear()
        for _ in range(20):
            pulse.beat()
            assert first_fault(watched, LIMIT_S / 10) is None
        assert first_fault(watched, 20) == "thread prober of other has not turned for 1 s"


def test_an_engine_call_may_take_longer_and_so_may_the_threads_beside_it(server: Incarnation) -> None:
    beats = Heartbeats(server.heartbeats / "other")
    beats.pulse("prober").beat()
    engine = beats.pulse("generation")
    with Watch(server, 0.2) as watched:  # type: ignore[arg-type]
        watched._missing.clear()
        with engine.call():
            assert first_fault(watched, 0.8) is None
            assert "has not turned for 0.2 s" in (first_fault(watched, 60) or "")


def test_without_a_limit_only_deaths_count(server: Incarnation) -> None:
    with Watch(server, 0) as watched:  # type: ignore[arg-type]
        os.kill(server.pid, signal.SIGSTOP)
        assert first_fault(watched, 0.3) is None
        assert len(watched.checks) == 1


def test_a_server_that_answers_nothing_is_a_fault(server: Incarnation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "Canary", lambda ask: Canary(ask, 0.1))
    with Watch(server, LIMIT_S) as watched:  # type: ignore[arg-type]
        assert first_fault(watched, 30) in (
            "speech_lm has not answered for 1 s",
            "audio_decoder has not answered for 1 s",
        )


def test_behind_tls_the_metrics_port_is_asked(server: Incarnation, monkeypatch: pytest.MonkeyPatch) -> None:
    server.options = ServerOptions(grpc_port=1, metrics_port=1, tls=TlsFiles(Path("a"), Path("b"), Path("c")))
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(watch, "read_metrics", lambda host, port: asked.append((host, port)))
    monkeypatch.setattr(watch, "Canary", lambda ask: ask() or SimpleNamespace(close=lambda: None))
    with Watch(server, LIMIT_S):  # type: ignore[arg-type]
        assert asked == [("127.0.0.1", 1)]


def test_a_canary_asks_again_until_it_has_its_answer_and_then_waits() -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def ask() -> None:
        asked.set()
        if not may_answer.is_set():
            raise OSError("refused")

    bird = Canary(ask, 0.01)
    before = bird.sign
    assert asked.wait(10)
    deadline = time.monotonic() + 10
    while not bird.waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    assert bird.waiting
    assert bird.sign != before
    may_answer.set()
    while bird.sign == 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert bird.sign > 1
    bird.close()
