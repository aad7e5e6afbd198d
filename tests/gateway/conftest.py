"""Gateways to test with: over the protocol double (fast, scripted), and over a real Triton server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from client_protocol_double import ProtocolDouble
from gateway.settings import Settings
from gateway_runs import served
from server.launch import TritonServer


@pytest.fixture
def double() -> Iterator[ProtocolDouble]:
    """A scripted server; the text of a request picks the script (tests/helpers/client_protocol_double.py)."""
    double = ProtocolDouble()
    yield double
    double.close()


@pytest.fixture
def gateway_url(double: ProtocolDouble) -> Iterator[str]:
    """The address of a gateway over `double`, `http://127.0.0.1:PORT`."""
    with served(Settings(servers=(double.url,))) as url:
        yield url


@pytest.fixture(scope="session")
def real_gateway_url(server: TritonServer) -> Iterator[str]:
    """The address of a gateway over a real Triton server; tests that use it carry the marker `server`."""
    with served(Settings(servers=(server.grpc_url,))) as url:
        yield url
