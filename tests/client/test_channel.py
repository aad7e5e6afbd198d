"""The way to a server: headers, times, limits and keepalive of both clients, and what its faults become."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from client_protocol_double import CHUNK_SAMPLES, ProtocolDouble
from vita_audio.contract.limits import MAX_AUDIO_SECONDS, MAX_HISTORY_AUDIO_SECONDS
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import (
    Client,
    Connection,
    GenerationFailed,
    InvalidRequest,
    Pcm,
    RequestRejected,
    ServerUnavailable,
    StreamBroken,
    Tls,
)

ROOT = Path(__file__).resolve().parents[2]
Connect = Callable[..., Any]


def test_headers_of_client_and_call(double: ProtocolDouble, connect: Connect) -> None:
    with connect(double.url, headers={"Authorization": "Bearer x", "tenant": "a"}) as client:
        client.collect("chunks 1", headers={"traceparent": "00-ab-cd-01"})
        client.stream("chunks 1", headers={"tenant": "b"}).collect()
        client.stream("chunks 1").collect()
        client.health()
    sent = [(h["authorization"], h["tenant"], h.get("traceparent")) for h in double.headers]
    assert sent == [("Bearer x", "a", "00-ab-cd-01"), ("Bearer x", "b", None), ("Bearer x", "a", None)]
    assert all("triton_grpc_error" not in headers for headers in double.headers)  # it kills tritonserver 2.51
    assert [(headers["authorization"], model) for headers, model in double.asked] == [
        ("Bearer x", ""),
        ("Bearer x", "vita_audio"),
    ]


def test_a_connection_replaces_the_other_arguments(double: ProtocolDouble, connect: Connect) -> None:
    connection = Connection(double.url, model="another", headers={"tenant": "c"})
    with connect("localhost:1", headers={"tenant": "a"}, connection=connection) as client:
        health = client.health()
        client.collect("chunks 1")
    assert (health.server, health.model) == (True, False)
    assert double.asked[-1][1] == double.requests[0].model_name == "another"
    assert double.headers[0]["tenant"] == "c"


@pytest.mark.parametrize("headers", [{"bad name": "x"}, {"": "x"}, {"name": "line\nbreak"}, {"a-bin": "x"}, {"n": "é"}])
def test_bad_headers_are_refused_before_sending(connect: Connect, double: ProtocolDouble, headers: Any) -> None:
    with connect(double.url) as client:
        for call in (client.stream, client.collect):
            with pytest.raises(InvalidRequest, match="headers"):
                call("chunks 1", headers=headers)
    for arguments in ({"headers": headers}, {"connection": Connection(double.url, headers=headers)}):
        with pytest.raises(InvalidRequest, match="headers"):
            connect(double.url, **arguments)
    assert double.headers == []


@pytest.mark.parametrize(("name", "value"), [(1, "x"), (b"n", "x"), ("n", 5), ("n", b"x"), ("n", None), ("n", "\x7f")])
def test_headers_of_other_types_are_named(name: Any, value: Any) -> None:
    with pytest.raises(InvalidRequest, match="headers"):
        Connection(headers={name: value}).metadata()


def test_headers_are_sent_in_lower_case_and_whole() -> None:
    connection = Connection(headers={"A-b_c.9": " ~"})
    assert connection.metadata({"d": ""}) == (("a-b_c.9", " ~"), ("d", ""))


def test_what_grpc_is_asked_for() -> None:
    assert dict(Connection("host:1", keepalive_s=7, connect_timeout_s=2, max_message_bytes=99).options()) == {
        "grpc.keepalive_time_ms": 7000,
        "grpc.keepalive_timeout_ms": 7000,
        "grpc.http2.ping_timeout_ms": 7000,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.min_reconnect_backoff_ms": 2000,
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 1000,
        "grpc.enable_retries": 0,
        "grpc.max_receive_message_length": 99,
        "grpc.max_send_message_length": 99,
        "grpc.use_local_subchannel_pool": 1,
    }
    options = dict(Connection("host:1").options())
    assert (options["grpc.keepalive_time_ms"], options["grpc.keepalive_timeout_ms"]) == (40_000, 10_000)
    longest_s = MAX_AUDIO_SECONDS + MAX_HISTORY_AUDIO_SECONDS
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"]
    assert options["grpc.max_send_message_length"] > 4 * INPUT_SAMPLE_RATE_HZ * longest_s
    assert options["grpc.min_reconnect_backoff_ms"] == 5000
    assert "grpc.ssl_target_name_override" not in dict(Connection("host:1", tls=Tls()).options())
    named = dict(Connection("host:1", tls=Tls(server_name="other")).options())
    assert named["grpc.ssl_target_name_override"] == "other"


@pytest.mark.parametrize("value", [0, -1, 3601, float("nan")])
@pytest.mark.parametrize("name", ["connect_timeout_s", "keepalive_s"])
def test_times_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match="at most 3600 seconds") as caught:
        Connection(**{name: value})
    assert caught.value.field == name
    Connection(**{name: 3600})


def test_every_client_has_a_connection_of_its_own(double: ProtocolDouble, connect: Connect) -> None:
    """The relay takes one connection: a second client must not ride on the first one's."""
    with Relay(double.port) as relay, connect(f"127.0.0.1:{relay.port}") as first:
        assert first.health().ready
        assert first.collect("chunks 1").text  # on the same connection
        with connect(f"127.0.0.1:{relay.port}") as second:
            assert not _answers(second)


def _answers(client: Any) -> bool:
    try:
        return bool(client.collect("chunks 1", timeout_s=0.5).text)
    except Exception:  # noqa: BLE001 - which error it is depends on the time
        return False


def test_no_server(connect: Connect) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with connect(f"127.0.0.1:{port}") as client:
        started_s = time.monotonic()
        with pytest.raises(ServerUnavailable, match=rf"^no answer from 127.0.0.1:{port}: .*refused") as caught:
            client.collect("chunks 1")
        assert caught.value.code == "unavailable"
        assert "last error" not in str(caught.value)
        health = client.health()
        assert (health.server, health.model, health.ready) == (False, False, False)
        assert "refused" in health.reason
        assert time.monotonic() - started_s < 20


def test_a_port_that_accepts_and_says_nothing(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = Connection(f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout_s=0.5)
        with connect(connection=connection) as client:
            started_s = time.monotonic()
            with pytest.raises(ServerUnavailable, match="no answer"):
                client.collect("chunks 1", timeout_s=60)
            assert not client.health().ready
            assert time.monotonic() - started_s < 30


def test_a_server_killed_in_the_middle(connect: Connect) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "helpers" / "client_protocol_double.py")],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "PATH": ""},
        text=True,
    )
    try:
        assert process.stdout is not None
        with connect(f"localhost:{int(process.stdout.readline())}") as client:
            stream = client.stream("chunks 1000 0.02")
            heard = [next(stream) for _ in range(12)]
            assert sum(isinstance(event, Pcm) for event in heard) == 3
            process.kill()
            with pytest.raises(StreamBroken, match="went away after"):
                list(stream)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("quiet_s", [0.0, 1.5])
def test_a_dead_network_is_noticed_by_keepalive(double: ProtocolDouble, connect: Connect, quiet_s: float) -> None:
    """A relay that stops forwarding looks like a pulled cable: nothing arrives, nothing is refused."""
    with Relay(double.port) as relay:
        connection = Connection(f"127.0.0.1:{relay.port}", keepalive_s=0.2)
        with connect(connection=connection) as client:
            stream = client.stream("stall", timeout_s=100)
            next(stream)
            time.sleep(quiet_s)
            relay.freeze()
            started_s = time.monotonic()
            with pytest.raises(StreamBroken, match="went away"):
                list(stream)
            assert time.monotonic() - started_s < 30


class Relay:
    """A TCP relay on loopback for one connection, that can stop forwarding without closing anything."""

    def __init__(self, target_port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target_port, self._frozen = target_port, threading.Event()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target_port))
        self._sockets = [near, far]
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other side was closed
            while (data := source.recv(65536)) and not self._frozen.is_set():
                sink.sendall(data)

    def freeze(self) -> None:
        self._frozen.set()

    def __exit__(self, *_: object) -> None:
        for opened in (self._listener, *self._sockets):
            opened.close()


def test_a_message_over_the_size_limit(double: ProtocolDouble, connect: Connect) -> None:
    connection = Connection(double.url, max_message_bytes=CHUNK_SAMPLES)
    with connect(connection=connection) as client, pytest.raises(GenerationFailed, match="larger than max"):
        client.collect("chunks 1")


def test_a_request_over_the_size_limit_is_not_sent_and_the_error_says_what_to_do(
    double: ProtocolDouble, connect: Connect
) -> None:
    refused = pytest.raises(RequestRejected, match=r"larger than max.*send fewer seconds of speech, or raise")
    with connect(connection=Connection(double.url, max_message_bytes=1000)) as client, refused as caught:
        client.collect(audio=np.zeros(16_000, np.float32), sample_rate=16_000)
    assert caught.value.code == "invalid_request"


def test_threads_that_start_at_once_share_one_connection(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_slowly(*arguments: Any, **options: Any) -> grpc.Channel:
        opened.append(arguments)
        time.sleep(0.2)
        return grpc.insecure_channel(*arguments, **options)

    monkeypatch.setattr(Client, "_library", SimpleNamespace(insecure_channel=open_slowly))
    with Client(double.url) as client, ThreadPoolExecutor(6) as threads:
        assert all(health.ready for health in threads.map(lambda _: client.health(), range(6)))
    assert opened == [(double.url,)]
