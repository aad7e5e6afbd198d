"""What every route may use: `request.app.state.gateway`, `websocket.app.state.gateway`."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from gateway.access import ANYONE, Access, Key
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.upstreams import Upstreams


@dataclass(slots=True)
class Gateway:
    """One running gateway.

    A route that generates does::

        async with gateway.access.stream(caller(request)) as use, gateway.upstreams.client() as client:
            ...
            use.sound(seconds)  # of each piece of sound

    A conversation takes `access.stream` once, and `upstreams.client()` for each turn, after `use.check()`.
    """

    settings: Settings
    upstreams: Upstreams
    access: Access = field(default_factory=Access)
    metrics: Metrics = field(default_factory=Metrics)


def gateway_of(connection: HTTPConnection) -> Gateway:
    """The gateway that a request or a WebSocket came to."""
    gateway: Gateway = connection.app.state.gateway
    return gateway


def caller(connection: HTTPConnection) -> Key:
    """Whose request or WebSocket it is."""
    return getattr(connection.state, "key", ANYONE)
