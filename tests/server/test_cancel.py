"""A client that hangs up on a real Triton makes room at once, wherever its stream is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.launch import TritonServer
from server.options import ServerOptions
from triton_probe import in_flight_at_stop, live, long_request, metrics, wait_idle
from vita_client import Client, ServerUnavailable
from vita_client.client import Stream

pytestmark = pytest.mark.server

RUNNING = 'vita_streams{stage="speech_lm",state="running"'
DECODING = 'vita_streams{stage="audio_decoder",state="running"'


@pytest.fixture
def small(engines: Path) -> Iterator[TritonServer]:
    """One slot, one more stream; stopped clean."""
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=1, queue=1)
    with TritonServer(options) as server:
        yield server
        assert set(wait_idle(server).values()) == {0.0}
    assert in_flight_at_stop(server.log()) == 0


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def gauge(server: TritonServer, name: str) -> float:
    return next((value for key, value in live(server).items() if key.startswith(name)), 0.0)


def admitted(client: Client, request: dict[str, Any]) -> tuple[Stream, float]:
    """A stream that has begun, and the seconds of trying to begin it."""
    asked = time.monotonic()
    while True:
        stream = client.stream(**request)
        try:
            next(stream)
        except ServerUnavailable:
            assert time.monotonic() - asked < 5, "no room after 5 s"
            time.sleep(0.01)
            continue
        return stream, time.monotonic() - asked


def refused(client: Client, request: dict[str, Any]) -> bool:
    try:
        next(client.stream(**request))
    except ServerUnavailable:
        return True
    return False


def test_a_queued_caller_who_hangs_up_makes_room(small: TritonServer) -> None:
    short = {"text": "Hello.", "max_tokens": 2, "task": "text", "timeout_s": 20}
    with Client(small.grpc_url) as client:
        request = long_request(client)
        first = client.stream(**request)
        next(first)
        for _ in range(5):
            queued = client.stream(**request)
            until(lambda: gauge(small, "vita_places_taken") == 2)
            assert refused(client, short)
            cancelled = time.monotonic()
            queued.cancel()
            until(lambda: not refused(client, short), 2)
            assert time.monotonic() - cancelled < 0.5
            until(lambda: gauge(small, "vita_places_taken") == 1)
            if gauge(small, RUNNING) == 0:  # the next one would not be queued
                break
        first.cancel()


def test_a_caller_who_hangs_up_while_its_prompt_is_read_makes_room(small: TritonServer) -> None:
    with Client(small.grpc_url) as client:
        request = long_request(client) | {"text": "word " * 180}
        for delay_s in (0.0, 0.005, 0.01, 0.02, 0.05):
            both = [client.stream(**request), client.stream(**request)]
            time.sleep(delay_s)
            for stream in both:
                stream.cancel()
            third, took_s = admitted(client, request)
            assert took_s < 0.5
            third.cancel()
            until(lambda: gauge(small, "vita_places_taken") == 0)


def test_a_caller_who_hangs_up_while_only_decoding_is_left_makes_room(small: TritonServer) -> None:
    with Client(small.grpc_url) as client:
        request = long_request(client)
        wait_idle(small)
        before = metrics(small)
        streams = [client.stream(**request), client.stream(**request)]
        for stream in streams:
            next(stream)
        until(lambda: gauge(small, RUNNING) == 0 and gauge(small, "vita_places_taken") == 2, 30)
        assert refused(client, request)
        streams[1].cancel()
        third, took_s = admitted(client, request)
        assert took_s < 0.5
        third.cancel()
        streams[0].cancel()
        until(lambda: gauge(small, DECODING) == 0, 2)
        audio_ms = sum(
            value - before.get(key, 0.0) for key, value in metrics(small).items() if key.startswith("vita_audio_ms")
        )
        assert audio_ms < 2 * 900 / 12.5 * 1e3 * 0.9, "cancelled streams were decoded to their end"
