"""The options every speaking command of `vita` shares, defined once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import INPUTS
from vita_client.channel import DEFAULT_TIMEOUT_S, DEFAULT_URL, Connection, Tls

_server = functools.partial(typer.Option, rich_help_panel="Server")
_generation = functools.partial(typer.Option, rich_help_panel="Generation")
_output = functools.partial(typer.Option, rich_help_panel="Output")
_SHORT = {"MODE": ("-m",)}


@dataclass(frozen=True)
class ServerOptions:
    """How to reach the server."""

    url: Annotated[str, _server("--url", "-u", envvar="VITA_URL", help="host:port of the server")] = DEFAULT_URL
    tls: Annotated[bool, _server("--tls", help="encrypt, trusting the roots of this machine")] = False
    ca: Annotated[Path | None, _server("--ca", help="root certificate of the server, PEM")] = None
    cert: Annotated[Path | None, _server("--cert", help="client certificate, PEM")] = None
    key: Annotated[Path | None, _server("--key", help="its key, PEM")] = None
    header: Annotated[list[str] | None, _server("--header", "-H", help="'name: value' sent along; may be repeated")] = (
        None
    )

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

    timeout: Annotated[float, _generation("--timeout", help="deadline in seconds")] = DEFAULT_TIMEOUT_S
    output: Annotated[
        Path | None, _output("--output", "-o", help="WAV file, written as it streams; - is standard output")
    ] = None
    play: Annotated[bool, _output("--play", help="play the sound as it streams")] = False
    json: Annotated[bool, _output("--json", help="one JSON object on standard output")] = False
    #: What was given of the options that come from the table of fields, by keyword.
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def to_stdout(self) -> bool:
        """Whether the sound goes to standard output, by `-` or by a name of it; what is for people then must not."""
        if self.output is None or str(self.output) == "-":
            return self.output is not None
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self.output), os.fstat(1)) and str(self.output) != os.devnull
        return False


def _field_parameters() -> list[inspect.Parameter]:
    """One option for each field of the public contract, but for those that a command or a conversation sets itself."""
    parameters = []
    for field in INPUTS:
        if field.name in ("TEXT", "AUDIO", "SAMPLE_RATE", "TASK") or (
            field.of_conversations and field.name != "SYSTEM"
        ):
            continue
        names = (f"--{field.keyword.replace('_', '-')}", *_SHORT.get(field.name, ()))
        option = _generation(*names, help=field.described(), show_default=False)
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
