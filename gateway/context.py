"""What every route may use: `request.app.state.gateway`, `websocket.app.state.gateway`."""

from __future__ import annotations

import asyncio

from starlette.requests import HTTPConnection
from starlette.types import Scope

from gateway.access import Access, Caller
from gateway.keys import ANYONE, KeyFile
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.spoken_answers import SpokenAnswers
from gateway.upstreams import Upstreams


class Gateway:
    """One gateway.

    A route that generates does::

        async with gateway.access.stream(caller(request)) as use:
            async for event in gateway.upstreams.events(ask, timeout_s):
                use.sound(seconds)  # of each piece of sound

    A conversation takes `access.stream` once, and for each turn, after `use.check()`, `upstreams.client(before)` with
    the client of the turn before. It ends soon after `draining` is set.

    Raises:
        InvalidRequest: a setting is wrong, such as a file of keys that cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.upstreams = Upstreams(settings.servers, self.metrics, settings.server_tls, settings.server_names)
        self.keys = None if settings.keys is None else KeyFile(settings.keys)
        self.access = Access(self.metrics)
        self.spoken_answers = SpokenAnswers()
        #: Set when no new requests are taken; those that run may end.
        self.draining = asyncio.Event()
        #: Requests and WebSockets that were let in and have not ended.
        self.running = 0


def gateway_of(connection: HTTPConnection) -> Gateway:
    """The gateway that a request or a WebSocket came to."""
    gateway: Gateway = connection.app.state.gateway
    return gateway


def caller(connection: HTTPConnection) -> Caller:
    """Whose request or WebSocket it is, and of which route."""
    return Caller(getattr(connection.state, "key", ANYONE), route_of(connection.scope))


def route_of(scope: Scope) -> str:
    """The path of the route that a request came to, as it was declared; "other" when there is none."""
    return str(getattr(scope.get("route"), "path", "other"))
