"""The command `vita-gateway`: options become settings, settings a running gateway."""

from __future__ import annotations

from typing import Annotated

import typer
import uvicorn

from gateway.app import create_app
from gateway.settings import Settings

DEFAULT = Settings()

app = typer.Typer(name="vita-gateway", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    server: Annotated[
        list[str] | None, typer.Option(help=f"gRPC address of a server; once for each [default: {DEFAULT.servers[0]}]")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = DEFAULT.host,
    port: Annotated[int, typer.Option(help="0 picks a free one")] = DEFAULT.port,
    wyoming_port: Annotated[
        int | None, typer.Option(help="also serve Wyoming (Home Assistant) here; it has no keys")
    ] = DEFAULT.wyoming_port,
    wyoming_host: Annotated[str, typer.Option(help="address for Wyoming")] = DEFAULT.wyoming_host,
) -> None:
    """Answer OpenAI's HTTP and Realtime interfaces over servers of vita_audio."""
    settings = Settings(
        servers=tuple(server or DEFAULT.servers),
        host=host,
        port=port,
        wyoming_host=wyoming_host,
        wyoming_port=wyoming_port,
    )
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port)


def main() -> None:
    app()
