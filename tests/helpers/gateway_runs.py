"""Gateways served by the real server on a free loopback port, in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from fastapi import APIRouter

from gateway.app import create_app
from gateway.server import Server
from gateway.settings import Settings


@contextmanager
def served(settings: Settings, *routers: APIRouter) -> Iterator[str]:
    """A running gateway: its address, `http://127.0.0.1:PORT`."""
    with running(settings, *routers) as server:
        yield f"http://127.0.0.1:{server.port}"


@contextmanager
def running(settings: Settings, *routers: APIRouter) -> Iterator[Server]:
    """A running gateway, with more routes if given; it is cut off at the end, running requests too."""
    settings = replace(settings, port=0)
    app = create_app(settings)
    for router in routers:
        app.include_router(router)
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the gateway does not end"
