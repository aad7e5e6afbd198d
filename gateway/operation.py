"""What operators ask for: whether it lives, whether it can serve, its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from gateway.context import gateway_of

router = APIRouter(tags=["operation"])


class Live(BaseModel):
    status: str = "ok"


class Ready(BaseModel):
    """`ready`: requests are taken, and a server behind the gateway can answer them."""

    ready: bool
    draining: bool
    servers_ready: int
    servers: int


@router.get("/health/live")
async def live() -> Live:
    """Answers as long as the process does."""
    return Live()


@router.get("/health/ready", responses={503: {"model": Ready}})
async def ready(request: Request, response: Response) -> Ready:
    """503 while it drains, and while no server is ready."""
    gateway = gateway_of(request)
    draining, count = gateway.draining.is_set(), gateway.upstreams.ready
    state = Ready(
        ready=count > 0 and not draining, draining=draining, servers_ready=count, servers=gateway.upstreams.total
    )
    response.status_code = 200 if state.ready else 503
    return state


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """In Prometheus's text form; needs a key where keys are asked for."""
    return Response(generate_latest(gateway_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)
