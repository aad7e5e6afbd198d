"""Command line of `benchmarks.gpu_serving`: everything that can be wrong is refused before a server starts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from server.options import DEVICES, EQUAL, PROFILES
from vita_audio.contract.errors import InvalidRequest
from vita_audio.contract.fields import TASKS
from vita_audio.contract.modes import parse_mode

#: Kept back for the check of cancelling, and what cut streams usually take to leave the server.
CANCEL_KEPT_S, SETTLE_S = 10.0, 2.0
#: Kept back for the end of the server.
STOP_S = 4.0
_STREAMS = (1, 8, 32, 64)


def read_options(description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Checked options. Exits with 2, one line and the usage for a value that is not valid."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, required=True)
    parser.add_argument("--profile", choices=PROFILES, default="gpu")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="where the gpu profile's engines run")
    parser.add_argument("--slots", type=_count, default=64, help="of the server, whose queue is as long")
    parser.add_argument(
        "--streams",
        type=_count,
        nargs="+",
        help="of each row, at most twice the slots (default: those of 1, 8, 32 and 64 that have a slot)",
    )
    parser.add_argument("--modes", type=_mode, nargs="+", default=["boost", "turbo"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["chat", "tts"])
    parser.add_argument("--seconds", type=_positive, default=25.0, help="of each row")
    parser.add_argument(
        "--budget", type=_positive, default=540.0, help="seconds for everything, start and end of the server included"
    )
    parser.add_argument("--max-tokens", type=_count, default=300, help="of each stream")
    parser.add_argument("--prebuffer-ms", type=_from_zero, default=60.0, help="how long a caller's player waits")
    parser.add_argument("--processes", type=_count, default=4, help="of clients")
    parser.add_argument("--threads", type=_count, default=None, help="CPU threads of each engine process")
    parser.add_argument("--mps", action="store_true", help="run the server under NVIDIA's Multi-Process Service")
    parser.add_argument("--one-process", action="store_true", help="language model and decoder in one process")
    parser.add_argument("--gpu-priority", default=EQUAL, help="of the server: whose kernels go first there")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the server's log goes beside it")
    options = parser.parse_args(arguments)
    options.streams = options.streams or [n for n in _STREAMS if n <= options.slots]
    admitted = 2 * options.slots
    if (most := max(options.streams)) > admitted:
        parser.error(
            f"argument --streams: {most} is not valid: a server with --slots {options.slots} and a queue as long "
            f"admits {admitted} streams; give fewer streams or more slots"
        )
    least_s = options.seconds + SETTLE_S + CANCEL_KEPT_S + STOP_S
    if options.budget < least_s:
        parser.error(
            f"argument --budget: {options.budget:g} is not valid: one row of --seconds {options.seconds:g} and the end "
            f"of a run take {least_s:g} s, the server's start comes on top; give more, or shorter rows"
        )
    if options.out.is_dir():
        parser.error(f"argument --out: {options.out} is a folder: name a JSON file")
    return options


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not valid: a whole number, at least 1")
    return int(text)


def _positive(text: str) -> float:
    number = _from_zero(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"{text} is not valid: more than 0")
    return number


def _from_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not valid: a finite number, at least 0")
    return number


def _mode(text: str) -> str:
    try:
        return parse_mode(text).name
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from None
