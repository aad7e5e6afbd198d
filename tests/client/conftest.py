"""A protocol double to connect to, and both clients behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client_protocol_double import ProtocolDouble
from client_twins import TWINS


@pytest.fixture
def double() -> Iterator[ProtocolDouble]:
    server = ProtocolDouble()
    yield server
    server.close()


@pytest.fixture(params=list(TWINS))
def connect(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a client, of each kind in turn; its arguments are those of `Client`."""
    return TWINS[request.param]


@pytest.fixture
def client(double: ProtocolDouble, connect: Callable[..., Any]) -> Iterator[Any]:
    with connect(double.url) as opened:
        yield opened
