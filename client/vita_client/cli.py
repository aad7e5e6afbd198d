"""The command line `vita`: say, ask, chat, talk, transcribe, health.

Exit codes: 0 done, 2 bad input, 3 no server (or a full one, or no access), 4 failed, too late, or the reader of a pipe
that the output goes to has left, 130 interrupted.
Errors are one line on standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, BinaryIO

import typer

from vita_audio.contract.errors import InvalidRequest, VitaError
from vita_client.client import Client
from vita_client.errors import UNAVAILABLE, AccessDenied
from vita_client.microphone import from_microphone
from vita_client.options import ServerOptions, StreamOptions, with_options
from vita_client.request import Request, build_request
from vita_client.session import Start, run_stream
from vita_client.stdin import decoded, standard_input
from vita_client.talk import Turn, run_talk, spoken, typed
from vita_client.terminal import choose_view

OK, BAD_INPUT, NO_SERVER, FAILED, INTERRUPTED = 0, 2, 3, 4, 130
#: By the code of an error; every other code is `FAILED`.
_EXIT_CODES = {
    InvalidRequest.default_code: BAD_INPUT,
    **dict.fromkeys((*UNAVAILABLE, AccessDenied.default_code), NO_SERVER),
}

app = typer.Typer(
    name="vita",
    help="Speak with a VITA-Audio server: text or speech in, streamed text and speech out.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: The base of "no such option" and the like; typer does not export its name.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

_Text = Annotated[str, typer.Argument(help="the text, or - to read it from standard input")]
_Speech = Annotated[str, typer.Argument(help="a sound file (any format and rate libsndfile reads), or - for stdin")]


@app.command()
@with_options
def say(text: _Text, options: StreamOptions) -> None:
    """Read a text aloud (text to speech), sentence by sentence; the deadline is that of each."""

    def prepare() -> Start:
        if options.output is None and not options.play:
            raise InvalidRequest("output", None, "the sound needs a place to go", "give -o FILE or --play")
        read = _read_text(text)
        build_request(read, task="tts", **options.fields)
        return lambda client: client.read(read, timeout_s=options.timeout, **options.fields)

    _run(options, prepare)


@app.command()
@with_options
def ask(speech: _Speech, options: StreamOptions) -> None:
    """Ask a spoken question; the answer is text and speech."""
    _send(options, lambda: build_request(audio=_read_speech(speech), **options.fields))


@app.command()
@with_options
def chat(
    text: _Text,
    options: StreamOptions,
    text_only: Annotated[bool, typer.Option("--text-only", help="answer in text, without speech")] = False,
) -> None:
    """Ask a typed question; the answer is text and speech."""
    task = "text" if text_only else "chat"
    _send(options, lambda: build_request(_read_text(text), task=task, **options.fields))


@app.command()
@with_options
def talk(
    options: StreamOptions,
    # No default of None: up to Python 3.10 `get_type_hints` wraps such a hint, and typer then finds no argument in it.
    turns: Annotated[
        list[str],
        typer.Argument(help="sound files, a turn each; none: type the turns", default_factory=list, show_default=False),
    ],
    microphone: Annotated[
        bool, typer.Option("--microphone", help="speak the turns, Enter before and after each")
    ] = False,
) -> None:
    """Hold a conversation; Ctrl-C interrupts an answer, and ends the conversation between two."""
    out = sys.stderr if options.to_stdout else sys.stdout
    source = _turns(turns, microphone)
    _show(lambda: run_talk(options, source, lambda: choose_view(options.json, out)), lambda: None)


def _turns(files: list[str], microphone: bool) -> Iterator[Turn]:
    if not microphone:
        yield from map(spoken, files) if files else typed(prompt=sys.stdin is not None and sys.stdin.isatty())
    elif files:
        raise InvalidRequest("microphone", True, "the turns are sound files", "leave out one of the two")
    else:
        yield from from_microphone()


@app.command()
@with_options
def transcribe(speech: _Speech, options: StreamOptions) -> None:
    """Write down what was said (speech recognition)."""
    _send(options, lambda: build_request(audio=_read_speech(speech), task="asr", **options.fields))


@app.command()
@with_options
def health(
    options: ServerOptions,
    wait: Annotated[float, typer.Option("--wait", help="wait up to this many seconds until it is ready")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Tell whether the server and its model are ready (exit code 0 or 3)."""
    try:
        with Client(connection=options.connection()) as client:
            if wait:
                client.wait_ready(wait)
            answer = client.health()
    except VitaError as error:
        if as_json:
            unknown = {"ready": False, "server": None, "model": None}
            print(json.dumps({**unknown, "reason": str(error), "code": error.code, "field": error.field or None}))
        _fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        fields = {"ready": answer.ready, "server": answer.server, "model": answer.model, "reason": answer.reason}
        print(json.dumps(fields))
    elif answer.ready:
        print(f"ready: {options.url}")
    else:
        _complain(answer.reason)
    raise typer.Exit(OK if answer.ready else NO_SERVER)


def main() -> None:
    """Entry point: SIGTERM ends a stream as cleanly as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # They may have been closed by the parent.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a narrow encoding; standard error does so by itself
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _USAGE_ERROR as error:
        _complain(f"{getattr(error, 'format_message', error.__str__)()}; see --help")
        code = BAD_INPUT
    except typer.Abort:
        code = INTERRUPTED
    except SystemExit:  # typer's answer to a broken pipe
        code = FAILED
    except OSError as error:  # standard output, full
        _complain(str(error))
        code = FAILED
    try:
        sys.stdout.flush()
    except OSError as error:
        # The output is full, or has no reader any more; keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not code and not isinstance(error, BrokenPipeError):
            _complain(str(error))
        code = code or FAILED
    sys.exit(code)


def _send(options: StreamOptions, make_request: Callable[[], Request]) -> None:
    """`_run` for one request."""

    def prepare() -> Start:
        request = make_request()
        return lambda client: client.send(request, timeout_s=options.timeout)

    _run(options, prepare)


def _run(options: StreamOptions, prepare: Callable[[], Start]) -> None:
    """Show a stream; always ends in an exit code."""
    view = choose_view(options.json, sys.stderr if options.to_stdout else sys.stdout)
    _show(lambda: run_stream(options, prepare, view), view.stop)


def _show(run: Callable[[], None], stop: Callable[[], None]) -> None:
    """Run streams; every way they can end is an exit code."""
    try:
        run()
    except VitaError as error:
        stop()
        _fail(error)
    except KeyboardInterrupt:
        stop()
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise typer.Exit(FAILED) from None
    except OSError as error:
        stop()
        _complain(str(error))
        raise typer.Exit(FAILED) from None


def _read_text(argument: str) -> str:
    return decoded(standard_input("TEXT").read()) if argument == "-" else argument


def _read_speech(argument: str) -> Path | BinaryIO:
    return standard_input("AUDIO") if argument == "-" else Path(argument)


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # standard error, full: there is nobody to tell
        print(f"vita: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _fail(error: VitaError) -> None:
    """One line on standard error and the exit code of this kind of error."""
    _complain(str(error))
    raise typer.Exit(_EXIT_CODES.get(error.code, FAILED)) from None


if __name__ == "__main__":
    main()
