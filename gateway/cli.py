"""The command `vita-gateway`: options become settings, settings a running gateway; `vita-gateway key` makes a key.

Exit codes: 0 ended after a drain, 2 a wrong option, 3 could not start (the log says why).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gateway import logs
from gateway.app import create_app
from gateway.keys import Limits, add_key
from gateway.server import Server
from gateway.settings import Settings
from vita_audio.contract.errors import InvalidRequest
from vita_client import Tls

DEFAULT = Settings()

app = typer.Typer(name="vita-gateway", add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    server: Annotated[
        list[str] | None, typer.Option(help=f"gRPC address of a server; once for each [default: {DEFAULT.servers[0]}]")
    ] = None,
    server_name: Annotated[
        list[str] | None, typer.Option(help="NAME:PORT: all addresses of the name are servers, as they come and go")
    ] = None,
    server_ca: Annotated[Path | None, typer.Option(help="PEM file: reach the servers by TLS, trust this")] = None,
    server_certificate: Annotated[Path | None, typer.Option(help="PEM file: what to show to the servers")] = None,
    server_key: Annotated[Path | None, typer.Option(help="PEM file: its key")] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = DEFAULT.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one")] = DEFAULT.port,
    wyoming_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="also serve Wyoming (Home Assistant) here; it has no keys")
    ] = DEFAULT.wyoming_port,
    wyoming_host: Annotated[str, typer.Option(help="address for Wyoming")] = DEFAULT.wyoming_host,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file: serve HTTPS")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file: its key")] = None,
    keys: Annotated[Path | None, typer.Option(help="file of API keys (vita-gateway key); without: no keys")] = None,
    open_access: Annotated[
        bool, typer.Option("--open-access", help="other machines may use what has no keys")
    ] = DEFAULT.open_access,
    origin: Annotated[
        list[str] | None, typer.Option(help="origin of pages elsewhere that may use it, such as https://a.example")
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="name that callers without keys may use for this machine")
    ] = None,
    max_requests: Annotated[int, typer.Option(help="requests and WebSockets at once")] = DEFAULT.max_requests,
    max_body_bytes: Annotated[int, typer.Option(help="of one request")] = DEFAULT.max_body_bytes,
    body_timeout_s: Annotated[float, typer.Option(help="for a body to come")] = DEFAULT.body_timeout_s,
    request_timeout_s: Annotated[float, typer.Option(help="for one answer")] = DEFAULT.request_timeout_s,
    write_timeout_s: Annotated[float, typer.Option(help="for a caller that takes nothing")] = DEFAULT.write_timeout_s,
    drain_timeout_s: Annotated[
        float, typer.Option(help="for running requests after SIGTERM or Ctrl-C")
    ] = DEFAULT.drain_timeout_s,
) -> None:
    """Answer OpenAI's HTTP and Realtime interfaces over servers of vita_audio."""
    if context.invoked_subcommand is not None:
        return
    try:
        settings = Settings(
            servers=tuple(server or (() if server_name else DEFAULT.servers)),
            server_names=tuple(server_name or ()),
            server_tls=_tls(server_ca, server_certificate, server_key),
            origins=tuple(origin or ()),
            host_names=tuple(host_name or ()),
            host=host,
            port=port,
            wyoming_port=wyoming_port,
            wyoming_host=wyoming_host,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            keys=keys,
            open_access=open_access,
            max_requests=max_requests,
            max_body_bytes=max_body_bytes,
            body_timeout_s=body_timeout_s,
            request_timeout_s=request_timeout_s,
            write_timeout_s=write_timeout_s,
            drain_timeout_s=drain_timeout_s,
        )
        logs.configure()
        running = Server(create_app(settings), settings)
    except InvalidRequest as error:
        _fail(error)
    running.run()


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="a name for it: in logs and metrics")],
    keys: Annotated[Path, typer.Option(help="file that its line is added to")],
    streams: Annotated[int | None, typer.Option(min=1, help="requests and conversations at once")] = None,
    minutes_per_hour: Annotated[float | None, typer.Option(min=0.1, help="minutes of sound")] = None,
    minutes_per_day: Annotated[float | None, typer.Option(min=0.1, help="minutes of sound")] = None,
) -> None:
    """Make an API key: it is printed once, the file holds its hash."""
    try:
        print(add_key(keys, name, Limits(streams, minutes_per_hour, minutes_per_day)))
    except InvalidRequest as error:
        _fail(error)


def _fail(error: InvalidRequest) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(2)


def _tls(root_ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    return Tls(root_ca, certificate, key) if root_ca or certificate or key else None


def main() -> None:
    app()
