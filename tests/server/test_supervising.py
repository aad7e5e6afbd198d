"""The supervisor's own decisions, on a server, a watch and a front that only say what they are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server import supervisor
from server.errors import CannotStart
from server.options import ServerOptions
from server.supervisor import Supervisor


class Scene:
    """What happens to the incarnations, and what became of them."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.said: list[str] = []
        self.done: list[str] = []
        self.drains = threading.Event()
        self.fault: Callable[[int], str | None] = lambda incarnation: None
        self.start: Callable[[int], None] = lambda incarnation: None
        self.looks = 0

    def run(self, restarts: int = 5) -> int:
        return Supervisor(ServerOptions(restarts=restarts), None, self.asked, self.said.append).run()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene()

    class Server:
        grpc_url, http_url, metrics_url, under_mps, start_seconds = "here", None, "there", False, 9.0

        def __init__(self, options: ServerOptions, log_file: Path | None, restarts: int = 0) -> None:
            self.options, self.log_file, self.number = options, Path("log"), restarts

        def start(self) -> None:
            scene.start(self.number)
            scene.done.append(f"start {self.number}")

        def kill(self) -> None:
            scene.done.append(f"kill {self.number}")

        def refuse(self) -> None:
            scene.done.append(f"refuse {self.number}")

        def drain(self) -> bool:
            return scene.drains.wait(20)

        def wait(self, timeout_s: float) -> bool:
            time.sleep(0.01)
            return False

        def held_bytes(self) -> int:
            return 0

    class Watch:
        def __init__(self, server: Server, stall_timeout_s: float) -> None:
            self.checks: list[Callable[[], str | None]] = []
            self._number = server.number

        def __enter__(self) -> Watch:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def fault(self) -> str | None:
            scene.looks += 1
            return scene.fault(self._number)

    monkeypatch.setattr(supervisor, "TritonServer", Server)
    monkeypatch.setattr(supervisor, "Watch", Watch)
    return scene  # its servers are ready for less long than their start took: failures are in a row


def later(seconds: float, act: Callable[[], object]) -> None:
    threading.Timer(seconds, act).start()


def test_a_drain_waits_for_its_streams_without_using_the_processor(scene: Scene) -> None:
    scene.asked.append(15)
    later(0.5, scene.drains.set)
    assert scene.run() == 0
    assert scene.done == ["start 0", "refuse 0", "kill 0"]
    assert scene.said[1:] == ["draining, at most 30 s; once more stops now", "stopped"]
    assert scene.looks < 20


def test_a_second_signal_ends_a_drain(scene: Scene) -> None:
    scene.asked.append(15)
    later(0.2, lambda: scene.asked.append(15))
    assert scene.run() == 1
    assert scene.said[-1] == "stopped; streams that were still running are lost"
    scene.drains.set()


def test_a_fault_while_it_drains_ends_the_drain(scene: Scene) -> None:
    scene.asked.append(15)
    later(0.2, lambda: setattr(scene, "fault", lambda incarnation: "a part has ended"))
    assert scene.run() == 1
    assert scene.said[-2:] == ["a part has ended: see log", "stopped; streams that were still running are lost"]
    scene.drains.set()


def test_an_incarnation_with_a_fault_is_killed_and_the_next_one_serves(scene: Scene) -> None:
    scene.fault = lambda incarnation: "a part has ended" if incarnation == 0 else None
    scene.drains.set()
    later(0.5, lambda: scene.asked.append(15))
    assert scene.run() == 0
    assert scene.done == ["start 0", "kill 0", "start 1", "refuse 1", "kill 1"]
    assert scene.said[1] == "a part has ended: restarting; see log"
    assert scene.said[2].startswith("ready again after 9.0 s: gRPC on here, metrics on there")


def test_too_many_faults_in_a_row_end_it(scene: Scene) -> None:
    scene.fault = lambda incarnation: f"fault {incarnation}"
    assert scene.run(restarts=2) == 1
    assert scene.done == ["start 0", "kill 0", "start 1", "kill 1", "start 2", "kill 2"]
    assert scene.said[-1] == "fault 2 (3 failures in a row): see log"


def test_a_start_that_fails_again_is_a_fault_and_the_first_one_the_end(scene: Scene) -> None:
    def start(incarnation: int) -> None:
        if incarnation == 1:
            raise CannotStart("the disk is full")

    scene.start, scene.fault = start, lambda incarnation: "a part has ended" if incarnation == 0 else None
    scene.drains.set()
    later(1.5, lambda: scene.asked.append(15))
    assert scene.run() == 0
    assert scene.done == ["start 0", "kill 0", "kill 1", "start 2", "refuse 2", "kill 2"]
    assert scene.said[2].startswith("cannot start: the disk is full: restarting in 0.5 s")
    scene.start = lambda incarnation: start(1)
    scene.asked.clear()
    assert scene.run() == 1
    assert scene.said[-1] == "cannot start: the disk is full"


def test_a_signal_between_two_incarnations_starts_no_other(scene: Scene) -> None:
    scene.fault = lambda incarnation: "a part has ended"
    later(0.3, lambda: scene.asked.append(15))
    assert scene.run() == 1
    assert scene.said[-1] == "stopped before it was ready"
    assert scene.done[-1].startswith("kill")
