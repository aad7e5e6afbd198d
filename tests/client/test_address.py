"""Addresses: which are taken, what the others are told, IPv6, and proxies of the environment."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from client_protocol_double import ProtocolDouble
from vita_client import Client, Connection, InvalidRequest, ServerUnavailable
from vita_client.address import is_loopback, proxy_of, split_address

#: A port where no proxy listens.
REFUSING = "http://someone:secret@127.0.0.1:9"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("", "for example localhost:8001"),
        (":8001", "for example localhost:8001"),
        ("local host:1", "for example localhost:8001"),
        ("localhost:8001\n", "a port is a number from 1 to 65535"),
        ("host:1:2", "for example localhost:8001"),
        ("unix:/tmp/socket", "a port is a number"),
        ("http://localhost:8001", "leave out http://"),
        ("grpc://localhost:8001", "leave out grpc://"),
        ("https://localhost:8001/v2", "leave out https:// and set tls"),
        ("grpcs://localhost:8001", "leave out grpcs:// and set tls"),
        ("localhost", "add the port, for example localhost:8001"),
        ("10.0.0.1", "add the port, for example 10.0.0.1:8001"),
        ("localhost:", "a port is a number from 1 to 65535"),
        ("localhost:0", "a port is a number from 1 to 65535"),
        ("localhost:65536", "a port is a number from 1 to 65535"),
        ("localhost:-1", "a port is a number from 1 to 65535"),
        ("localhost:http", "a port is a number from 1 to 65535"),
        ("localhost:8001/v2", "a port is a number from 1 to 65535"),
        ("localhost:²", "a port is a number from 1 to 65535"),
        ("::1", "an IPv6 address is written [::1]:8001"),
        ("::1:8001", "an IPv6 address is written [::1]:8001"),
        ("fe80::1:8001", "an IPv6 address is written [::1]:8001"),
        ("1:2:3:4:5:6:7:8:8001", "an IPv6 address is written [::1]:8001"),
        ("[::1]", "an IPv6 address is written [::1]:8001"),
        ("[::1", "an IPv6 address is written [::1]:8001"),
        ("[localhost]:8001", "an IPv6 address is written [::1]:8001"),
        ("[::1]:", "a port is a number from 1 to 65535"),
    ],
)
def test_a_wrong_address_has_a_remedy(url: str, remedy: str) -> None:
    with pytest.raises(InvalidRequest, match="it has the form host:port; ") as caught:
        Client(url)
    assert caught.value.field == "url"
    assert caught.value.remedy.startswith(remedy)
    assert caught.value.remedy.endswith("and set tls") == url.startswith(("https", "grpcs"))


_HOSTS = st.one_of(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,20}", fullmatch=True), st.ip_addresses(v=4).map(str))


@given(host=st.one_of(_HOSTS, st.ip_addresses(v=6)), port=st.integers(1, 65535))
def test_any_host_and_port_is_taken_apart(host: Any, port: int) -> None:
    written = f"[{host}]" if isinstance(host, ipaddress.IPv6Address) else host
    assert split_address(f"{written}:{port}") == (str(host), port)
    Connection(f"{written}:{port}")


@given(url=st.text(st.sampled_from("ab1:[]./ %\n-_²"), max_size=12))
@example("\n://")
def test_any_text_is_an_address_or_an_error_of_one_line(url: str) -> None:
    try:
        host, port = split_address(url)
    except InvalidRequest as error:
        lines = str(error).splitlines()
    else:
        lines = [host]
        assert url.rpartition(":")[0] in (host, f"[{host}]")
        assert int(url.rpartition(":")[2]) == port
    assert len(lines) == 1


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "localhost.", "127.0.0.1", "127.255.0.9", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example", "127.0.0.1.example", "128.0.0.1", "::2", "10.0.0.1", "local"])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("variable", VARIABLES[:4])
def test_a_proxy_does_not_touch_loopback(
    double: ProtocolDouble, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variable: str, upper: bool
) -> None:
    monkeypatch.setenv(variable.upper() if upper else variable, REFUSING)
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    for host in ("localhost", "127.0.0.1"):
        with connect(f"{host}:{double.port}") as client:
            assert client.health().ready
            assert client.collect("chunks 1").text


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_an_error_elsewhere_names_the_proxy(
    connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, REFUSING)
    words = (
        rf"no answer from 192\.0\.2\.1:8001 \(through the proxy 127\.0\.0\.1:9 of {variable}; name the host in no_proxy"
    )
    with connect("192.0.2.1:8001") as client:
        with pytest.raises(ServerUnavailable, match=words) as caught:
            client.collect("chunks 1", timeout_s=30)
        assert "secret" not in str(caught.value)
        assert "through the proxy 127.0.0.1:9" in client.health().reason
        assert "secret" not in client.health().reason


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"grpc_proxy": "http://a:1", "https_proxy": "http://b:1", "http_proxy": "http://c:1"}, ("a:1", "grpc_proxy")),
        ({"https_proxy": "http://b:1", "http_proxy": "http://c:1"}, ("b:1", "https_proxy")),
        ({"http_proxy": "http://c:1"}, ("c:1", "http_proxy")),
        ({"https_proxy": "", "http_proxy": "http://c:1"}, None),
        ({"all_proxy": "http://c:1", "HTTP_PROXY": "http://c:1"}, None),
        ({"http_proxy": "socks5://c:1"}, None),
        ({"http_proxy": "http://[c"}, None),
        ({"http_proxy": "c:1"}, None),
        ({"http_proxy": "http://c:1", "no_proxy": "other, lab.example"}, None),
        ({"http_proxy": "http://c:1", "no_proxy": "EXAMPLE"}, None),
        ({"http_proxy": "http://c:1", "no_proxy": ",other"}, ("c:1", "http_proxy")),
        ({"http_proxy": "http://c:1", "no_grpc_proxy": "x", "no_proxy": "example"}, ("c:1", "http_proxy")),
    ],
)
def test_which_proxy_grpc_takes(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[str, str] | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("server.lab.example") == expected
    assert proxy_of("localhost") is None


def test_a_network_in_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://c:1")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8")
    assert proxy_of("10.1.2.3") is None
    monkeypatch.setenv("no_proxy", "10.9.9.9/8")
    assert proxy_of("10.1.2.3") is None
    assert proxy_of("11.1.2.3") == ("c:1", "http_proxy")


def test_ipv6(connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    monkeypatch.setenv("http_proxy", REFUSING)
    double = ProtocolDouble(host="[::1]")
    try:
        with connect(f"[::1]:{double.port}") as client:
            assert client.health().ready
            assert client.collect("chunks 1").text
    finally:
        double.close()
