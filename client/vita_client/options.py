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
from vita_client.audio import AudioSource
from vita_client.channel import DEFAULT_TIMEOUT_S, DEFAULT_URL, Connection, Tls
from vita_client.request import RequestFields

_SERVER, _SAMPLING, _OUTPUT = "Server", "Generation", "Output"


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

    mode: Annotated[
        str | None,
        typer.Option("--mode", "-m", help='vanilla, balance, boost, turbo or "1,10,4,10"', rich_help_panel=_SAMPLING),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="stop after this many tokens", rich_help_panel=_SAMPLING)
    ] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 is greedy", rich_help_panel=_SAMPLING)
    ] = None
    top_k: Annotated[int | None, typer.Option("--top-k", help="0 is off", rich_help_panel=_SAMPLING)] = None
    top_p: Annotated[float | None, typer.Option("--top-p", help="1 is off", rich_help_panel=_SAMPLING)] = None
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="1 is off", rich_help_panel=_SAMPLING)
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", help="the same seed gives the same answer", rich_help_panel=_SAMPLING)
    ] = None
    timeout: Annotated[float, typer.Option("--timeout", help="deadline in seconds", rich_help_panel=_SAMPLING)] = (
        DEFAULT_TIMEOUT_S
    )
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="WAV file, written as it streams", rich_help_panel=_OUTPUT)
    ] = None
    play: Annotated[bool, typer.Option("--play", help="play the sound as it streams", rich_help_panel=_OUTPUT)] = False
    json: Annotated[
        bool, typer.Option("--json", help="one JSON object on standard output", rich_help_panel=_OUTPUT)
    ] = False

    def fields(self, task: str, audio: AudioSource | None = None) -> RequestFields:
        """These options, with what the command adds, as request fields."""
        return RequestFields(
            task=task,
            audio=audio,
            mode=self.mode,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `options: ServerOptions` (or a subclass) of a command by one option per field.

    typer reads a command's options from its signature; this writes that signature.
    """
    hints = get_type_hints(command, include_extras=True)
    kind = hints.pop("options")
    own = [
        p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values() if p.name in hints
    ]
    field_hints = get_type_hints(kind, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field_hints[field.name]
        )
        for field in dataclasses.fields(kind)
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        command(**values, options=options)

    parameters = [*own, *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
