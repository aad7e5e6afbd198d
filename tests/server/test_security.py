"""What a started server lets through: loopback, gRPC only, no administration; TLS when asked."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from certificates import make_certificate
from server.command import LOCK
from server.launch import TritonServer
from server.options import ServerOptions
from server.processes import descendants
from triton_probe import Probe
from vita_client import Client, ServerUnavailable, Tls

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def probe(server: TritonServer) -> Iterator[Probe]:
    probe = Probe(server)
    yield probe
    probe.close()


def listening(pid: int) -> set[tuple[str, int]]:
    """IPv4 and IPv6 addresses and ports a process listens on."""
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                family = socket.AF_INET if table == "tcp" else socket.AF_INET6
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


def test_only_grpc_and_metrics_listen_and_only_on_loopback(server: TritonServer) -> None:
    ports = {server.options.grpc_port, server.options.metrics_port}
    assert {port for pid in descendants(server.pid) for _, port in listening(pid)} == ports
    hosts = {host.removeprefix("::ffff:") for pid in descendants(server.pid) for host, _ in listening(pid)}
    assert hosts == {"127.0.0.1"}


ADMINISTRATION = {
    "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="prompt"),
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="prompt"),
    "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=1),
    "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
    "TraceSetting": service_pb2.TraceSettingRequest(),
    "LogSettings": service_pb2.LogSettingsRequest(),
}


@pytest.mark.parametrize("call", ADMINISTRATION)
def test_administration_is_locked_even_for_those_who_read_the_key(
    server: TritonServer, probe: Probe, call: str
) -> None:
    command = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
    key = next(part for part in command if part.startswith("--grpc-restricted-protocol=")).split("=", 2)[2]
    header = (f"triton-grpc-protocol-{LOCK.lower()}", key)
    with pytest.raises(grpc.RpcError) as refused:
        getattr(probe.stub, call)(ADMINISTRATION[call], metadata=(header,), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "This protocol is restricted" in refused.value.details()


def test_a_client_can_read_health_metadata_and_statistics(probe: Probe) -> None:
    assert probe.stub.ServerReady(service_pb2.ServerReadyRequest()).ready
    assert probe.stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="vita_audio")).name == "vita_audio"
    assert probe.stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="prompt")).model_stats


def test_http_is_there_when_asked_for_and_as_locked(engines: Path) -> None:
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, http_port=0)
    with TritonServer(options) as server:
        with urllib.request.urlopen(f"http://{server.http_url}/v2", timeout=5) as page:
            assert json.load(page)["name"] == "triton"
        for path in ("repository/index", "systemsharedmemory/status", "trace/setting", "logging"):
            url = f"http://{server.http_url}/v2/{path}"
            request = urllib.request.Request(url, data=b"{}" if path == "repository/index" else None)
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(request, timeout=5)


def test_tls(engines: Path, tmp_path: Path) -> None:
    mine, stranger = make_certificate(tmp_path, "server"), make_certificate(tmp_path, "stranger")
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, tls=mine)
    with TritonServer(options) as server:
        with Client(server.grpc_url, tls=Tls(mine.certificate)) as client:
            assert client.collect("Secret.", max_tokens=10, timeout_s=30).tokens
        with Client(server.grpc_url, tls=Tls(stranger.certificate)) as client, pytest.raises(ServerUnavailable):
            client.collect("Secret.", max_tokens=10, timeout_s=5)
        with Client(server.grpc_url) as client, pytest.raises(ServerUnavailable):
            client.collect("Secret.", max_tokens=10, timeout_s=5)


def test_mutual_tls(engines: Path, tmp_path: Path) -> None:
    mine, friend = make_certificate(tmp_path, "server"), make_certificate(tmp_path, "friend")
    stranger = make_certificate(tmp_path, "stranger")
    tls = type(mine)(mine.certificate, mine.key, client_ca=friend.certificate)
    with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0, tls=tls)) as server:

        def ask(identity: Tls) -> bool:
            with Client(server.grpc_url, tls=identity) as client:
                return bool(client.collect("Secret.", max_tokens=10, timeout_s=5).tokens)

        assert ask(Tls(mine.certificate, certificate=friend.certificate, key=friend.key))
        for identity in (
            Tls(mine.certificate),
            Tls(mine.certificate, certificate=stranger.certificate, key=stranger.key),
        ):
            with pytest.raises(ServerUnavailable):
                ask(identity)
