"""The process: drain, connections that do not go on, TLS, its log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from certificates import make_certificate
from client_protocol_double import ProtocolDouble
from gateway import server as server_module
from gateway.app import create_app
from gateway.server import Server
from gateway.settings import Settings
from gateway_routes import router
from gateway_runs import running, served
from vita_audio.contract.errors import InvalidRequest
from waiting import until

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def gateway(double: ProtocolDouble, **settings: float) -> Iterator[tuple[Server, str]]:
    with running(Settings(servers=(double.url,), **settings), router) as server:  # type: ignore[arg-type]
        yield server, f"http://127.0.0.1:{server.port}"


@contextmanager
def endless(url: str) -> Iterator[Iterator[bytes]]:
    """An answer without end, whose first part has come."""
    with httpx.stream("GET", f"{url}/v1/endless", timeout=30) as answer:
        sound = answer.iter_raw()
        next(sound)
        yield sound


# ---- drain


def test_a_signal_lets_what_runs_end_and_refuses_what_comes(double: ProtocolDouble) -> None:
    with gateway(double) as (server, url), httpx.Client(base_url=url, timeout=30) as client:
        client.get("/health/ready").raise_for_status()  # a connection that stays open
        answers: list[httpx.Response] = []
        long = {"text": "chunks 20 0.1"}
        caller = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/speak", json=long, timeout=30)))
        caller.start()
        with connect(url.replace("http", "ws") + "/v1/talk") as talk:
            until(lambda: double.inputs)
            server.handle_exit(signal.SIGTERM, None)
            until(lambda: client.get("/health/ready").status_code == 503)
            assert client.get("/health/ready").json()["draining"] is True
            assert client.get("/health/live").status_code == 200
            refused = client.post("/v1/speak", json={"text": "chunks 1"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert refused.headers["retry-after"] == "5"
            with pytest.raises(InvalidStatus) as closed:
                connect(url.replace("http", "ws") + "/v1/talk")
            assert closed.value.response.status_code == 503
            with pytest.raises(ConnectionClosed) as ended:
                talk.recv(10)
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == 1001
        caller.join(30)
        assert answers[0].status_code == 200
        assert len(answers[0].content) == 20 * 2205 * 2
        until(lambda: not _accepts(server, url))


def _accepts(server: Server, url: str) -> bool:
    try:
        httpx.get(f"{url}/health/live")
    except httpx.TransportError:
        return False
    return True


def test_the_drain_has_an_end(double: ProtocolDouble) -> None:
    with gateway(double, drain_timeout_s=0.2) as (server, url), endless(url) as sound:
        server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(httpx.TransportError):
            for _ in sound:
                pass


def test_the_second_signal_stops_at_once(double: ProtocolDouble) -> None:
    with (
        gateway(double, drain_timeout_s=1000) as (server, url),
        connect(url.replace("http", "ws") + "/v1/talk"),
        endless(url) as sound,
    ):
        server.handle_exit(signal.SIGINT, None)
        server.handle_exit(signal.SIGINT, None)
        with pytest.raises(httpx.TransportError):
            for _ in sound:
                pass


# ---- connections that do not go on


def _is_ended(connection: socket.socket) -> bool:
    """Whether the gateway ends it, before its own time-out."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("begin", [b"", b"POST /v1/spe", b"GET /health/live HTTP/1.1\r\nHost: localh"])
def test_a_head_that_does_not_come(double: ProtocolDouble, begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_HEAD_TIMEOUT_S", 0.2)
    with gateway(double) as (server, url), socket.create_connection(("127.0.0.1", server.port), 20) as slow:
        slow.sendall(begin)
        assert _is_ended(slow)
        assert httpx.get(f"{url}/health/live").status_code == 200


def test_a_caller_that_reads_nothing_loses_its_connection(double: ProtocolDouble) -> None:
    """And the place that it has; what was sent to it until then is bounded by the buffers of the sockets."""
    with (
        gateway(double, write_timeout_s=0.5) as (server, url),
        socket.create_connection(("127.0.0.1", server.port), 20) as deaf,
    ):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /v1/endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        streams = 'vita_gateway_streams_running{route="/v1/endless"} '
        until(lambda: streams + "1.0" in httpx.get(f"{url}/metrics").text)
        until(lambda: streams + "0.0" in httpx.get(f"{url}/metrics").text, 60)


@pytest.mark.parametrize(("timeout_s", "ms"), [(1e-6, 1), (86_400.0, 86_400_000)])
def test_the_kernel_is_told_of_every_write_timeout(double: ProtocolDouble, timeout_s: float, ms: int) -> None:
    """To the kernel 0 is its own default, of minutes."""
    with gateway(double, write_timeout_s=timeout_s) as (server, _):
        listener = server.servers[0].sockets[0]
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == ms


def test_a_caller_that_leaves_frees_its_place(double: ProtocolDouble) -> None:
    with gateway(double) as (_, url):
        with endless(url):
            pass
        streams = 'vita_gateway_streams_running{route="/v1/endless"} 0.0'
        until(lambda: streams in httpx.get(f"{url}/metrics").text)


def test_connections_that_ask_for_nothing_take_no_place(double: ProtocolDouble) -> None:
    with gateway(double, max_requests=2) as (server, url), contextlib.ExitStack() as idle:
        for _ in range(8):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
        until(lambda: len(server.server_state.connections) >= 8)
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert httpx.post(f"{url}/v1/speak", json={"text": "chunks 1"}).status_code == 200


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\x00" * 100])
def test_what_is_not_http(double: ProtocolDouble, nonsense: bytes) -> None:
    with gateway(double) as (server, url), socket.create_connection(("127.0.0.1", server.port), 20) as other:
        other.sendall(nonsense)
        assert _is_ended(other)
        assert httpx.get(f"{url}/health/live").status_code == 200


# ---- TLS


def test_https(double: ProtocolDouble, tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "gateway")
    settings = Settings(servers=(double.url,), tls_certificate=files.certificate, tls_key=files.key)
    trust = ssl.create_default_context(cafile=str(files.certificate))
    with running(settings, router) as server:
        assert httpx.get(f"https://localhost:{server.port}/health/live", verify=trust).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{server.port}/health/live")
        with connect(f"wss://localhost:{server.port}/v1/talk", ssl=trust) as talk:
            talk.send("a")
            assert talk.recv(5) == "a"


def test_servers_behind_tls(tmp_path: Path) -> None:
    import grpc

    from vita_client import Tls

    files = make_certificate(tmp_path, "server")
    credentials = grpc.ssl_server_credentials([(files.key.read_bytes(), files.certificate.read_bytes())])
    double = ProtocolDouble(credentials)
    try:
        with served(Settings(servers=(double.url,), server_tls=Tls(files.certificate)), router) as url:
            assert httpx.post(f"{url}/v1/speak", json={"text": "chunks 1"}).status_code == 200
    finally:
        double.close()


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("nonsense")
    settings = Settings(tls_certificate=tmp_path / "a.pem", tls_key=tmp_path / "a.pem")
    with pytest.raises(InvalidRequest, match="cannot be read as PEM files"):
        Server(create_app(settings), settings)


# ---- the command


def started(*options: str) -> subprocess.Popen[str]:
    """`vita-gateway` with these options."""
    command = [sys.executable, "-m", "gateway", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")])}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_wyoming_is_served_and_ends_with_the_gateway(double: ProtocolDouble) -> None:
    with running(Settings(servers=(double.url,), wyoming_port=0)) as server:
        assert server._wyoming is not None
        with socket.create_connection(("127.0.0.1", server._wyoming.port), 20) as client:
            client.sendall(b'{"type": "ping"}\n')
            assert b'"pong"' in client.recv(1 << 16)
            server.handle_exit(signal.SIGTERM, None)
            assert _is_ended(client)


@pytest.mark.parametrize("option", ["--port", "--wyoming-port"])
def test_a_port_that_is_taken_is_one_line_in_the_log(double: ProtocolDouble, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = started("--server", double.url, option, str(taken.getsockname()[1]))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    (line,) = map(json.loads, said.splitlines())
    assert (line["level"], "address already in use" in line["event"]) == ("error", True)


def test_the_command_serves_drains_and_logs_no_content(double: ProtocolDouble) -> None:
    process = started("--server", double.url)
    try:
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        assert first["event"] == "listening"
        answer = httpx.get(f"{first['url']}/v1/my-secret", params={"words": "my-secret"}, timeout=20)
        assert answer.status_code == 404
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read().splitlines()
        assert process.wait(20) == 0
    finally:
        process.kill()
    lines = [json.loads(line) for line in rest]
    (request,) = [line for line in lines if line["event"] == "request"]
    assert (request["route"], request["status"], request["method"]) == ("other", 404, "GET")
    assert request["id"] == answer.headers["x-request-id"]
    assert [line["event"] for line in lines if line["level"] != "info"] == []
    assert "my-secret" not in "".join(rest)
