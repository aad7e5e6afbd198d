"""The application: routes, errors, and what opens and closes with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from gateway import operation, page
from gateway.context import Gateway
from gateway.errors import add_handlers
from gateway.guard import Guard
from gateway.http import chat, models, speech, transcriptions
from gateway.observe import Observe
from gateway.realtime import endpoint as realtime
from gateway.schema import describe
from gateway.settings import Settings

#: Every router of the gateway, one line each.
ROUTERS: tuple[APIRouter, ...] = (
    operation.router,
    models.router,
    speech.router,
    transcriptions.router,
    chat.router,
    realtime.router,
    page.router,
)


def create_app(settings: Settings) -> FastAPI:
    """A gateway that is ready to be served by uvicorn; `app.state.gateway` is its `Gateway`.

    Raises:
        InvalidRequest: a file that the settings name is wrong.
    """
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway.upstreams.open()
        try:
            yield
        finally:
            await gateway.upstreams.close()

    app = FastAPI(title="VITA-Audio gateway", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.gateway = gateway
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    describe(app)
    # The last one that is added is the outermost.
    app.add_middleware(Guard, gateway=gateway)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's SDK sends many of its own; there are no cookies to protect
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(Observe, gateway=gateway)
    return app
