"""The options every speaking command of `vita` shares, defined once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import INPUTS
from vita_client.channel import DEFAULT_TIMEOUT_S, DEFAULT_URL, Connection, Tls

_SERVER, _GENERATION, _OUTPUT = "Server", "Generation", "Output"
_SHORT = {"MODE": ("-m",)}


@dataclass(frozen=True)
class ServerOptions:
    """How to reach the server."""

    url: Annotated[
        str, typer.Option("--url", "-u", envvar="VITA_URL", help="host:port of the server", rich_help_panel=_SERVER)
    ] = DEFAULT_URL
    tls: Annotated[
        bool, typer.Option("--tls", help="encrypt, trusting the roots of this machine", rich_help_panel=_SERVER)
    ] = False
    ca: Annotated[
        Path | None, typer.Option("--ca", help="root certificate of the server, PEM", rich_help_panel=_SERVER)
    ] = None
    cert: Annotated[Path | None, typer.Option("--cert", help="client certificate, PEM", rich_help_panel=_SERVER)] = None
    key: Annotated[Path | None, typer.Option("--key", help="its key, PEM", rich_help_panel=_SERVER)] = None
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="'name: value' sent along; may be repeated", rich_help_panel=_SERVER),
    ] = None

    def connection(self) -> Connection:
        """The connection these options describe.

        Raises:
            InvalidRequest: an address, a header or a TLS file is wrong.
        """
        headers = {}
        for line in self.header or ():
            name, colon, value = line.partition(":")
            if not colon:
                raise InvalidRequest("header", line, "it has the form 'name: value'")
            headers[name.strip()] = value.strip()
        encrypted = self.tls or self.ca is not None or self.cert is not None or self.key is not None
        tls = Tls(self.ca, self.cert, self.key) if encrypted else None
        return Connection(self.url, tls=tls, headers=headers)


@dataclass(frozen=True)
class StreamOptions(ServerOptions):
    """How to generate, and where the sound goes."""

    timeout: Annotated[float, typer.Option("--timeout", help="deadline in seconds", rich_help_panel=_GENERATION)] = (
        DEFAULT_TIMEOUT_S
    )
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="WAV file, written as it streams", rich_help_panel=_OUTPUT)
    ] = None
    play: Annotated[bool, typer.Option("--play", help="play the sound as it streams", rich_help_panel=_OUTPUT)] = False
    json: Annotated[
        bool, typer.Option("--json", help="one JSON object on standard output", rich_help_panel=_OUTPUT)
    ] = False

    #: What was given of the options that come from the table of fields, by keyword.
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def _field_parameters() -> list[inspect.Parameter]:
    """One option for each field of the public contract, but for those that a command sets itself."""
    parameters = []
    for field in INPUTS:
        if field.name in ("TEXT", "AUDIO", "SAMPLE_RATE", "TASK"):
            continue
        names = (f"--{field.keyword.replace('_', '-')}", *_SHORT.get(field.name, ()))
        option = typer.Option(*names, help=field.described(), rich_help_panel=_GENERATION, show_default=False)
        kind: Any = Annotated[field.python_type | None, option]
        parameters.append(
            inspect.Parameter(field.keyword, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        )
    return parameters


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `options: ServerOptions` (or `StreamOptions`) of a command by one option per field.

    typer reads a command's options from its signature; this writes that signature.
    """
    hints = get_type_hints(command, include_extras=True)
    kind = hints.pop("options")
    own = [
        p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values() if p.name in hints
    ]
    field_hints = get_type_hints(kind, include_extras=True)
    plain = [field for field in dataclasses.fields(kind) if field.name != "fields"]
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field_hints[field.name]
        )
        for field in plain
    ]
    table = _field_parameters() if issubclass(kind, StreamOptions) else []

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = kind(**{field.name: values.pop(field.name) for field in plain})
        for parameter in table:
            options.fields[parameter.name] = values.pop(parameter.name)
        command(**values, options=options)

    parameters = [*own, *table, *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
