"""The application: routes, errors, and what opens and closes with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from gateway.context import Gateway
from gateway.errors import add_handlers
from gateway.settings import Settings
from gateway.upstreams import Upstreams
from gateway.wyoming_server import WyomingServer

#: Every router of the gateway, one line each.
ROUTERS: tuple[APIRouter, ...] = ()


def create_app(settings: Settings) -> FastAPI:
    """A gateway that is ready to be served by uvicorn, or called by a test."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway = Gateway(settings, Upstreams(settings.servers))
        app.state.gateway = gateway
        wyoming = WyomingServer(gateway, settings.wyoming_host, settings.wyoming_port or 0)
        if settings.wyoming_port is not None:
            await wyoming.listen()
        try:
            yield
        finally:
            await wyoming.close()
            await gateway.upstreams.close()

    app = FastAPI(title="VITA-Audio gateway", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
