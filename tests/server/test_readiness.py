"""When a starting server counts as ready, and what is said when it does not, against a gRPC service of the test."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server import readiness
from server.errors import CannotStart
from server.options import ServerOptions
from server.readiness import LOST_S, POLL_S, wait_until_ready

#: What an earlier start left in the log: an error, which would be the better reason.
EARLIER = 'E1123 06:48:40.606384 156 main.cc:9] "an earlier failure"\n'


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Live and ready from the n-th question on."""

    def __init__(self) -> None:
        self.live_from = self.ready_from = 1
        self.asked_live, self.asked_ready = 0, list[str]()

    def ServerLive(self, request: Any, context: Any) -> Any:
        self.asked_live += 1
        return service_pb2.ServerLiveResponse(live=self.asked_live >= self.live_from)

    def ModelReady(self, request: Any, context: Any) -> Any:
        self.asked_ready.append(request.name)
        return service_pb2.ModelReadyResponse(ready=len(self.asked_ready) >= self.ready_from)


class Clock:
    """Time passes where the code waits."""

    def __init__(self) -> None:
        self.now, self.naps = 50.0, 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now, self.naps = self.now + seconds, self.naps + 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(readiness, "time", clock)
    return clock


@contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def closed_port() -> int:
    with listening() as port:
        return port


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A service that is ready, and options that name its port and an open one for the metrics."""
    triton, server = Triton(), grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    log = tmp_path / "log"
    log.write_text(f"{EARLIER}new words\n")
    with listening() as metrics:
        options: dict[str, Any] = {"grpc_port": port, "metrics_port": metrics, "start_timeout_s": 2.0}
        yield SimpleNamespace(triton=triton, options=options, log=log)
    server.stop(0).wait()


def wait(bench: SimpleNamespace, ended: Any = lambda: False, lost: Any = lambda: None, **changes: Any) -> None:
    options = ServerOptions(**{**bench.options, **changes})
    wait_until_ready(options, ended, lost, bench.log, len(EARLIER), "a_model")


def test_a_server_that_is_ready_is_not_waited_for(bench: SimpleNamespace, clock: Clock) -> None:
    wait(bench)
    assert (bench.triton.asked_ready, bench.triton.asked_live, clock.naps) == (["a_model"], 1, 0)


@pytest.mark.parametrize("which", ["live_from", "ready_from"])
def test_live_alone_and_ready_alone_are_not_enough(bench: SimpleNamespace, clock: Clock, which: str) -> None:
    setattr(bench.triton, which, 4)
    wait(bench)
    assert clock.naps == 3


@pytest.mark.parametrize("port", ["grpc_port", "metrics_port", "http_port"])
def test_every_port_has_to_be_open(bench: SimpleNamespace, clock: Clock, port: str) -> None:
    with pytest.raises(CannotStart, match=r"^Triton was not ready after 2 s \(log: .*/log\)$"):
        wait(bench, **{port: closed_port()})
    assert 2.0 / POLL_S - 1 <= clock.naps <= 2.0 / POLL_S + 2


def test_a_triton_that_ends_says_why_at_once(bench: SimpleNamespace, clock: Clock) -> None:
    with pytest.raises(CannotStart, match=r"^Triton ended while it started: new words \(log: .*/log\)$"):
        wait(bench, ended=lambda: True)
    assert clock.naps == 0


def test_a_part_that_stays_lost_ends_the_start_and_one_that_comes_back_does_not(
    bench: SimpleNamespace, clock: Clock
) -> None:
    bench.triton.ready_from = 10_000
    with pytest.raises(CannotStart, match=r"^model prompt ended while it loaded: new words"):
        wait(bench, lost=lambda: "model prompt ended", start_timeout_s=10.0)
    assert LOST_S < clock.now - 50.0 <= LOST_S + 2 * POLL_S
    begun = clock.now
    with pytest.raises(CannotStart, match="not ready after 10 s"):  # away for half of the limit, again and again
        wait(bench, lost=lambda: "gone" if (clock.now - begun) % LOST_S > LOST_S / 2 else None, start_timeout_s=10.0)


def test_a_socket_stands_for_the_port(bench: SimpleNamespace, clock: Clock, tmp_path: Path) -> None:
    missing = tmp_path / "socket"
    with pytest.raises(CannotStart, match="not ready after"):
        wait(bench, grpc_socket=missing)
    assert bench.triton.asked_live == 0
