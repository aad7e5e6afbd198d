"""What a person sees while a stream runs: live on a terminal, plain lines elsewhere, one JSON object for machines."""

from __future__ import annotations

import json
import sys
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from vita_audio.contract.errors import VitaError
from vita_client.events import Event, Metrics, Reply, TextDelta
from vita_client.wav import WavWriter

_REFRESH_PER_SECOND = 10


class View:
    """Shows one stream; this one shows nothing."""

    def event(self, event: Event, metrics: Metrics) -> None:
        """The next event, and the numbers so far."""

    def stop(self) -> None:
        """End whatever is live on the screen; may be called twice."""

    def summary(self, reply: Reply, wav: WavWriter | None, outcome: str, problem: VitaError | None) -> None:
        """The stream is over."""

    def refused(self, problem: VitaError) -> None:
        """It failed before there was a stream; an error that a summary has told is not told again."""


def numbers(metrics: Metrics) -> str:
    """`first audio 93 ms | 4.2 s of sound | 0.31x real time | 210 tokens/s`, with what is known."""
    parts = []
    if metrics.ttfa_ms is not None:
        parts.append(f"first audio {metrics.ttfa_ms:.0f} ms")
    elif metrics.first_text_ms is not None:
        parts.append(f"first text {metrics.first_text_ms:.0f} ms")
    if metrics.audio_s:
        parts.append(f"{metrics.audio_s:.1f} s of sound")
    if metrics.real_time_factor is not None:
        parts.append(f"real-time factor {metrics.real_time_factor:.2f}")
    if metrics.tokens_per_s is not None:
        parts.append(f"{metrics.tokens_per_s:.0f} tokens/s")
    return " | ".join(parts) or f"waiting {metrics.elapsed_ms / 1e3:.1f} s"


def summary_line(reply: Reply, wav: WavWriter | None, outcome: str) -> str:
    """The last line for a person: how it ended, the numbers, and where the sound went."""
    sound = f" -> {wav.path} ({wav.seconds:.1f} s)" if wav else ""
    return f"{outcome} | {numbers(reply.metrics)}{sound}"


class PlainView(View):
    """No terminal: the text as it comes, the numbers as one line on standard error at the end."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._mid_line = out, False

    def event(self, event: Event, metrics: Metrics) -> None:
        if isinstance(event, TextDelta):
            print(event.text, end="", file=self._out, flush=True)
            self._mid_line = not event.text.endswith("\n")

    def stop(self) -> None:
        if self._mid_line:
            self._mid_line = False
            print(file=self._out, flush=True)

    def summary(self, reply: Reply, wav: WavWriter | None, outcome: str, problem: VitaError | None) -> None:
        if reply.metrics.responses or not problem:  # else the error line says it all
            print(summary_line(reply, wav, outcome), file=sys.stderr, flush=True)


class LiveView(View):
    """A terminal: the end of the text that fits, and the numbers under it, redrawn; the whole text stays at the end."""

    def __init__(self, console: Console) -> None:
        self._console, self._text = console, ""
        self._metrics: Metrics | None = None
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=_REFRESH_PER_SECOND,
            transient=True,
            redirect_stderr=False,
        )
        self._live.start()
        self._stopped = False

    def _render(self) -> Group:
        lines = Text(self._text).wrap(self._console, self._console.width)
        shown = list(lines)[-max(1, self._console.height - 2) :]
        return Group(*shown, Text(numbers(self._metrics) if self._metrics else "connecting", style="dim"))

    def event(self, event: Event, metrics: Metrics) -> None:
        self._metrics = metrics
        if isinstance(event, TextDelta):
            self._text += event.text

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._live.stop()
        if self._text:
            self._console.print(Text(self._text))

    def summary(self, reply: Reply, wav: WavWriter | None, outcome: str, problem: VitaError | None) -> None:
        if reply.metrics.responses or not problem:
            self._console.print(Text(summary_line(reply, wav, outcome), style="dim"))


class JsonView(View):
    """Nothing while it runs; one JSON object at the end, in ASCII, which fits every encoding of `out`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told: VitaError | None = None

    def summary(self, reply: Reply, wav: WavWriter | None, outcome: str, problem: VitaError | None) -> None:
        self._told = problem
        status, metrics = reply.status, reply.metrics
        result = {
            **_problem(outcome, problem),
            "text": reply.text,
            "tokens": metrics.tokens,
            "audio_s": round(metrics.audio_s, 4),
            "wav": str(wav.path) if wav else None,
            "wav_s": round(wav.seconds, 4) if wav else 0.0,
            "ttfa_ms": _rounded(metrics.ttfa_ms),
            "first_text_ms": _rounded(metrics.first_text_ms),
            "elapsed_ms": _rounded(metrics.elapsed_ms),
            "real_time_factor": _rounded(metrics.real_time_factor),
            "tokens_per_s": _rounded(metrics.tokens_per_s),
            "status": json.loads(status.to_json()) if status else None,
        }
        print(json.dumps(result), file=self._out, flush=True)

    def refused(self, problem: VitaError) -> None:
        if problem is not self._told:
            print(json.dumps(_problem("failed", problem)), file=self._out, flush=True)


def _problem(outcome: str, problem: VitaError | None) -> dict[str, str | None]:
    if problem is None:
        return {"outcome": outcome, "error": None, "code": None, "field": None}
    return {"outcome": outcome, "error": str(problem), "code": problem.code, "field": problem.field or None}


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def choose_view(as_json: bool, out: TextIO) -> View:
    """The view that fits `out`, standard output or, where the sound goes there, standard error."""
    if as_json:
        return JsonView(out)
    if out.isatty():
        console = Console(file=out)
        if console.is_terminal and not console.is_dumb_terminal:
            return LiveView(console)
    return PlainView(out)
