"""The balancer of deploy/haproxy: its file, and a real HAProxy between our client and a real server."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks import scale_out
from benchmarks.balancer import CONFIG, Balancer
from server.haproxy import find_haproxy
from server.launch import TritonServer
from triton_probe import long_request, metrics, wait_idle
from vita_audio.contract.fields import ENSEMBLE
from vita_client import Client, ServerUnavailable

needs_haproxy = pytest.mark.skipif(
    find_haproxy() is None, reason="haproxy is not installed (Debian: apt-get install haproxy)"
)
NOBODY = "127.0.0.1:9"  # discard: nothing listens there


def literal(text: bytes) -> bytes:
    """A string of HPACK or protobuf: its length, then it."""
    return bytes([len(text)]) + text


def frame(kind: int, flags: int, stream: int, payload: bytes) -> str:
    """An HTTP/2 frame in hexadecimal."""
    return (len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload).hex()


def test_the_health_check_is_the_call_it_says() -> None:
    """RFC 9113 frames and RFC 7541 headers (indices of the static table), written out again."""
    headers = b"\x83\x86"  # :method POST, :scheme http
    headers += b"\x04" + literal(b"/inference.GRPCInferenceService/ModelReady") + b"\x01" + literal(b"vita")
    headers += b"\x0f\x10" + literal(b"application/grpc") + b"\x00" + literal(b"te") + literal(b"trailers")
    message = service_pb2.ModelReadyRequest(name=ENSEMBLE).SerializeToString()
    start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".hex() + frame(4, 0, 0, b"")
    call = [start, frame(1, 4, 1, headers), frame(0, 1, 1, b"\0" + len(message).to_bytes(4, "big") + message)]
    assert re.findall(r"send-binary (\w+)", CONFIG.read_text()) == call
    ready = service_pb2.ModelReadyResponse(ready=True).SerializeToString()
    expected = b"\0" + len(ready).to_bytes(4, "big") + ready
    assert re.findall(r"expect binary (\w+)", CONFIG.read_text()) == [expected.hex()]


@needs_haproxy
def test_haproxy_accepts_the_file() -> None:
    made = subprocess.run([str(find_haproxy()), "-c", "-f", str(CONFIG)], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    assert "WARNING" not in made.stderr + made.stdout


@pytest.fixture
def balancer(server: TritonServer) -> Iterator[Balancer]:
    """In front of the real server, as `a`; `b` is not there."""
    with Balancer([server.grpc_url, NOBODY]) as running:
        running.wait_for("a", "UP")
        running.wait_for("b", "DOWN")
        yield running


@needs_haproxy
@pytest.mark.server
def test_streams_pass_and_the_rest_stays_outside(server: TritonServer, balancer: Balancer) -> None:
    fields = {"text": "Read this aloud.", "task": "tts", "max_tokens": 80, "seed": 4, "timeout_s": 60}
    with Client(server.grpc_url) as straight, Client(balancer.url) as through:
        assert through.health().ready
        expected, reply = straight.collect(**fields), through.collect(**fields)
        assert (reply.tokens, reply.text) == (expected.tokens, expected.text)
        assert (reply.pcm == expected.pcm).all()
        # The header that makes this Triton answer in another way does not arrive.
        assert through.collect(**fields, headers={"triton_grpc_error": "true"}).tokens == expected.tokens
    with grpc.insecure_channel(balancer.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for call, request in (
            (stub.RepositoryIndex, service_pb2.RepositoryIndexRequest()),
            (stub.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
            (stub.ModelInfer, service_pb2.ModelInferRequest(model_name="speech_lm")),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(request, timeout=30)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    with urllib.request.urlopen(f"http://{balancer.status_url}/metrics", timeout=30) as answer:
        assert 'haproxy_server_current_sessions{proxy="vita",server="a"}' in answer.read().decode()


@needs_haproxy
@pytest.mark.server
def test_a_cancelled_stream_is_cancelled_behind_the_balancer(server: TritonServer, balancer: Balancer) -> None:
    cancelled = 'vita_streams_ended_total{reason="cancelled",stage="speech_lm"}'
    before = metrics(server).get(cancelled, 0)
    with Client(balancer.url) as client:
        stream = client.stream(**long_request(client))  # so that it is not generated before it is cancelled
        next(stream)
        stream.cancel()
    assert set(wait_idle(server).values()) == {0.0}
    assert metrics(server)[cancelled] == before + 1


@needs_haproxy
@pytest.mark.server
def test_a_drained_server_ends_its_streams_and_gets_no_new_ones(server: TritonServer, balancer: Balancer) -> None:
    with Client(balancer.url) as client:
        stream = client.stream(**long_request(client))
        next(stream)
        balancer.set_state("a", "drain")
        assert balancer.streams("a") == 1
        asked = time.monotonic()
        with pytest.raises(ServerUnavailable, match="no server is ready"):
            client.collect("Hello", timeout_s=30)
        assert time.monotonic() - asked < 5
        assert len(stream.collect().tokens) > 150
        assert balancer.streams("a") == 0
        balancer.set_state("a", "ready")
        assert client.collect("Hello", task="text", max_tokens=5, timeout_s=30).tokens


#: A server in the protocol alone (it makes no speech): ready, answers a stream once or, when asked to be silent, never.
PROTOCOL_DOUBLE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
class Double(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=True)
    def ModelStreamInfer(self, requests, context):
        if next(requests).id != "silent":
            yield service_pb2.ModelStreamInferResponse()
        time.sleep(60)
server = grpc.server(ThreadPoolExecutor(4))
service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Double(), server)
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination(60)
"""


@needs_haproxy
def test_streams_of_a_killed_server_end_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    ended: dict[str, tuple[int, grpc.StatusCode, float]] = {}

    def call(name: str) -> None:
        answers = 0
        with grpc.insecure_channel(balancer.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = service_pb2.ModelInferRequest(model_name=ENSEMBLE, id=name)
            try:
                for _ in stub.ModelStreamInfer(iter([request]), timeout=30):
                    answers += 1
            except grpc.RpcError as error:
                ended[name] = (answers, error.code(), time.monotonic())

    process = subprocess.Popen([sys.executable, "-c", PROTOCOL_DOUBLE, address])
    try:
        with Balancer([address, NOBODY]) as balancer:
            balancer.wait_for("a", "UP")
            callers = [threading.Thread(target=call, args=(name,)) for name in ("silent", "speaking")]
            for caller in callers:
                caller.start()
            while balancer.streams("a") < 2:
                time.sleep(0.02)
            time.sleep(0.5)  # the answer of the speaking one has come
            killed = time.monotonic()
            process.kill()
            for caller in callers:
                caller.join()
            assert balancer.wait_for("a", "DOWN") < 5
    finally:
        process.kill()
        process.wait()
    assert ended["silent"][:2] == (0, grpc.StatusCode.UNAVAILABLE)
    # HAProxy 2.6 ends a stream that had begun without trailers, which gRPC calls UNKNOWN; 2.8 resets it.
    assert ended["speaking"][0] == 1
    assert ended["speaking"][1] in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
    assert max(when for _, _, when in ended.values()) - killed < 10


@needs_haproxy
def test_without_servers_callers_hear_at_once() -> None:
    with Balancer([NOBODY, NOBODY]) as balancer, Client(balancer.url) as client:
        for server in ("a", "b"):
            balancer.wait_for(server, "DOWN")
        asked = time.monotonic()
        with pytest.raises(ServerUnavailable, match="no server is ready"):
            client.collect("Hello", timeout_s=30)
        assert time.monotonic() - asked < 5
        assert not client.health().ready


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--callers", "1"], "--callers: 1 is not valid: from 2 to 64"),
        (["--phase-s", "500"], "--phase-s: 500 is not valid: from 1 to 120 seconds"),
    ],
)
def test_the_rehearsal_refuses_what_it_cannot_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scale_out.main(["--engines", "engines/cpu", *arguments])
    assert message in capsys.readouterr().err


def test_the_rehearsal_says_that_there_are_no_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale_out.main(["--engines", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("scale_out: ")
