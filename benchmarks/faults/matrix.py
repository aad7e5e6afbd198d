"""Every process of the server killed, ended and stopped for ten seconds, and each stalled for a moment, under load."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import psutil

from benchmarks.faults.bench import (
    Bench,
    always,
    described,
    restarted,
    survived,
    survived_or_restarted,
    times,
    under_load,
)
from benchmarks.faults.rows import Row, beyond
from benchmarks.faults.seen import Seen, Watch
from benchmarks.server_process import GUARD, LAUNCHER, ServerProcess

MODELS = ("prompt", "speech_tokenizer", "speech_lm", "audio_decoder")
TRITON, FRONT = "tritonserver", "haproxy"
PROCESSES = (LAUNCHER, GUARD, TRITON, FRONT, *MODELS)
STOP_S = 10.0
STALLS_S = (0.7, 1.3, 2.5, 5.0)
#: A stall up to here does no harm. After a longer one Triton (2.51) may give a model process up, which is a restart.
_HARMLESS_STALL_S = 1.0
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)


class NoSuchProcess(Exception):
    """A part that this server does without."""


def cells() -> Iterator[tuple[str, Callable[[Bench], Row]]]:
    """The faults by name. `launcher SIGTERM` is in `benchmarks.faults.signals`."""
    for name in PROCESSES:
        for number in SIGNALS:
            if (name, number) == (LAUNCHER, signal.SIGKILL):
                yield f"{name} {number.name}", launcher_killed
            elif (name, number) != (LAUNCHER, signal.SIGTERM):
                yield f"{name} {number.name}", partial(one, name=name, number=number)
    for name in (*MODELS, TRITON):
        for seconds in STALLS_S:
            yield f"{name} stalls {seconds:g} s", partial(stall, name=name, seconds=seconds)


def one(bench: Bench, name: str, number: signal.Signals) -> Row:
    """A process gets a signal."""
    if number == signal.SIGSTOP:
        # Without its launcher the server just goes on; a guard or a front that stands still may be replaced.
        rule = survived if name == LAUNCHER else survived_or_restarted if name == GUARD else restarted
        return _faulty(bench, name, number.name, lambda process: pause(process, STOP_S), rule, STOP_S + 6)
    rule = restarted if number == signal.SIGKILL else survived_or_restarted
    return _faulty(bench, name, number.name, lambda process: process.send_signal(number), rule, 5.0)


def stall(bench: Bench, name: str, seconds: float) -> Row:
    """A process stands still for a moment."""
    rule = survived if seconds <= _HARMLESS_STALL_S else survived_or_restarted
    return _faulty(bench, name, f"stalls {seconds:g} s", lambda process: pause(process, seconds), rule, seconds + 4)


def launcher_killed(bench: Bench) -> Row:
    """Nothing may be left of a server whose launcher is gone, and its callers may not wait for it."""
    limits = bench.limits
    with bench.server() as server:
        with Watch(server.url, patience=bench.patience) as watch:
            watch.wait_running(60 * bench.patience)
            watch.mark()
            server.launcher.kill()
            server.launcher.wait()
            gone_s, left = bench.gone(server)
        seen = watch.seen()
    wrong = [
        *beyond("not ready", seen.not_ready_s, limits.not_ready_s),
        *(beyond("the streams in flight ended", seen.ended_s, limits.ended_s) if seen.failed else []),
        *([f"left behind after {limits.gone_s:g} s: {left}"] if left else []),
        *always(seen),
    ]
    figures = {"gone_s": gone_s}
    return Row("matrix", f"{LAUNCHER} SIGKILL", described(seen), *times(seen), seen.failed, left, tuple(wrong), figures)


def pause(process: psutil.Process, seconds: float) -> None:
    """Stop a process and let it go on, if it still is there."""
    process.suspend()
    try:
        time.sleep(seconds)
    finally:
        with suppress(psutil.Error):
            process.resume()


def _faulty(
    bench: Bench, name: str, what: str, happen: Callable[[psutil.Process], None],
    rule: Callable[[Bench, Seen], list[str]], least_s: float,
) -> Row:  # fmt: skip
    def make(server: ServerProcess) -> None:
        found = server.processes().get(name)
        if not found:
            raise NoSuchProcess
        happen(found[0])

    fault = f"{name} {what}"
    try:
        return under_load(bench, "matrix", fault, make, rule, least_s)
    except NoSuchProcess:
        return Row("matrix", fault, f"not run: this server has no process {name}")
