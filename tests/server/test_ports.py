"""Host names, addresses of both kinds, and how Triton's ports and clients write them."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from server.command import triton_arguments
from server.errors import CannotStart
from server.locate import Triton
from server.options import ServerOptions
from server.ports import address_of, claim_ports, is_loopback, url_of
from vita_client.address import split_address

FAMILIES = ((socket.AF_INET6, "::1"), (socket.AF_INET, "192.0.2.1"))


@pytest.mark.parametrize(
    ("host", "address", "loopback"),
    [("127.0.0.1", "127.0.0.1", True), ("127.9.9.9", "127.9.9.9", True), ("::1", "::1", True), ("::", "::", False)],
)
def test_addresses_of_both_kinds(host: str, address: str, loopback: bool) -> None:
    assert address_of(host) == address
    assert is_loopback(host) is loopback


def test_a_name_with_both_kinds_of_addresses_is_its_ipv4_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(family, socket.SOCK_STREAM, 6, "", (address, 0)) for family, address in FAMILIES]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    assert address_of("name") == "192.0.2.1"
    assert not is_loopback("name")
    del found[1]
    assert address_of("name") == "::1"
    assert is_loopback("name")


@pytest.mark.parametrize("host", ["", "[::1]", "no such host", "::1::", "x" * 80, "127.0.0.1:8001"])
def test_what_has_no_address_is_refused_by_its_flag(host: str) -> None:
    with pytest.raises(CannotStart, match=r"^--metrics-host: .* has no address .*: give a name or an address"):
        address_of(host, "--metrics-host")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "localhost"])
def test_a_client_can_use_the_printed_address(host: str) -> None:
    assert split_address(url_of(host, 8001)) == (host, 8001)


@pytest.mark.parametrize("host", ["::1", "::"])
def test_ports_of_ipv6_addresses_are_claimed(host: str) -> None:
    options = claim_ports(ServerOptions(host=host, metrics_host="::1", grpc_port=0, metrics_port=0, http_port=0))
    assert len({options.grpc_port, options.metrics_port, options.http_port, 0}) == 4
    with socket.create_server((host, 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"^--grpc-port: port {port} of {host} cannot be used \(Address already"):
            claim_ports(replace(options, grpc_port=port))


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_an_address_of_another_machine_is_refused(address: str) -> None:
    with pytest.raises(CannotStart, match=f"^--host: {address} is not an address of this machine"):
        claim_ports(ServerOptions(host=address, grpc_port=0, metrics_port=0))
    with pytest.raises(CannotStart, match=f"^--metrics-host: {address} is not an address of this machine"):
        claim_ports(ServerOptions(metrics_host=address, grpc_port=0, metrics_port=0))


@pytest.mark.parametrize(
    ("host", "grpc", "http"),
    [("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1", "127.0.0.1"), ("::1", "[::1]", "ipv6:::1")],
)
def test_triton_gets_addresses_as_its_ports_read_them(host: str, grpc: str, http: str) -> None:
    """It resolves no names, and its two kinds of ports write IPv6 each in its own way."""
    options = ServerOptions(host=host, metrics_host=host, grpc_port=1, metrics_port=2, http_port=3)
    line = triton_arguments(
        options, Triton("test", Path("/t"), Path("/b"), Path("/s"), ()), Path("/backends"), "prefix"
    )
    assert {f"--grpc-address={grpc}", f"--http-address={http}", f"--metrics-address={http}"} <= set(line)
