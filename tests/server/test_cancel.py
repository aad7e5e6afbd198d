"""A client that hangs up on a real Triton makes room at once, wherever its stream is."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.launch import TritonServer
from server.options import ServerOptions
from server.processes import descendants
from triton_probe import in_flight, live, long_request, metrics, wait_idle
from vita_audio.contract.errors import ServerFull
from vita_client import Client, ServerUnavailable
from vita_client.client import Stream
from waiting import until

pytestmark = pytest.mark.server

#: About 0.1 s on a machine that has time for it. On one that has none, a stream of 900 tokens takes far longer.
ROOM_S = 3.0


@pytest.fixture
def small(engines: Path) -> Iterator[TritonServer]:
    """One slot, one more stream; stopped clean."""
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=1, queue=1)
    with TritonServer(options) as server:
        yield server
        assert set(wait_idle(server).values()) == {0.0}
        assert in_flight(server) == 0


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """A process that runs for a few ms a second. Stopped for a second on end it would break Triton (docs/triton.md)."""
    over = threading.Event()

    def slow() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.4)
            os.kill(pid, signal.SIGCONT)
            over.wait(0.005)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def full(server: TritonServer) -> bool:
    """What the server's own admission record says at this moment."""
    assert server.admission is not None
    try:
        server.admission.check()
    except ServerFull:
        return True
    return False


def taken(client: Client, request: dict[str, Any]) -> Stream:
    """A stream that is not refused: it waits, or has begun."""
    stream = client.stream(**request)
    refusals: list[ServerUnavailable] = []

    def read() -> None:
        try:
            for _ in stream:
                pass
        except ServerUnavailable as error:
            refusals.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(0.3)
    assert refusals == []
    return stream


def test_a_queued_caller_who_hangs_up_makes_room(small: TritonServer) -> None:
    with Client(small.grpc_url) as client:
        request = long_request(client)
        wait_idle(small)
        first = client.stream(**request)
        next(first)
        for _ in range(3):
            queued = client.stream(**request)
            until(lambda: full(small))
            with pytest.raises(ServerUnavailable, match="server is full"):
                client.collect(**request)
            queued.cancel()
            assert until(lambda: not full(small)) < ROOM_S
        last = taken(client, request)
        assert full(small)
        first.cancel()
        last.cancel()


def test_a_caller_who_hangs_up_while_its_prompt_is_read_makes_room(small: TritonServer) -> None:
    with Client(small.grpc_url) as client:
        request = long_request(client) | {"text": "word " * 180}
        for delay_s in (0.0, 0.005, 0.01, 0.02, 0.05):
            both = [client.stream(**request), client.stream(**request)]
            time.sleep(delay_s)
            for stream in both:
                stream.cancel()
            until(lambda: not full(small))
        last = taken(client, request)
        last.cancel()


def test_a_caller_who_hangs_up_while_only_decoding_is_left_makes_room(small: TritonServer) -> None:
    """The decoder is held up until the language model has ended, as on a server whose decoder falls behind."""
    (decoder,) = [pid for pid in descendants(small.pid) if "audio_decoder" in Path(f"/proc/{pid}/cmdline").read_text()]
    with Client(small.grpc_url) as client:
        request = long_request(client)
        wait_idle(small)
        before = sum(value for key, value in metrics(small).items() if key.startswith("vita_audio_ms"))
        with slowed(decoder):
            streams = [client.stream(**request), client.stream(**request)]
            until(lambda: full(small))
            until(lambda: sum(value for key, value in live(small).items() if 'stage="speech_lm"' in key) == 0, 60)
            assert full(small)
            for stream in streams:
                stream.cancel()
        assert until(lambda: not full(small)) < ROOM_S
        wait_idle(small)
        after = sum(value for key, value in metrics(small).items() if key.startswith("vita_audio_ms"))
        assert after - before < 900 / 12.5 * 1e3, "cancelled streams were decoded to their end"
