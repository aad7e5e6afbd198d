"""What every part of the campaign is given: servers of its own, limits, sizes; and how a row under load is made."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.rows import Limits, Row, beyond, counted, telling, unfair, words
from benchmarks.faults.seen import Seen, Watch
from benchmarks.server_process import ServerProcess
from loadtest.clock import now_s

SLOTS, QUEUE = 4, 8
#: Metrics are 0.2 s old at most; a client that is gone is noticed within 0.1 s.
_PLACES_S = 5.0


@dataclass(frozen=True, slots=True)
class Bench:
    """Args:
    seed: of every random choice.
    patience: times every limit in seconds.
    sizes: how much of each part, by name.
    """

    engines: Path
    seed: int = 1
    patience: float = 1.0
    sizes: Mapping[str, float] = field(default_factory=dict)

    @property
    def limits(self) -> Limits:
        return Limits().times(self.patience)

    def random(self, part: str) -> random.Random:
        """The same for the same seed and part."""
        return random.Random(f"{self.seed} {part}")

    @contextmanager
    def server(self, *arguments: str, **settings: Any) -> Iterator[ServerProcess]:
        """A server that is ready.

        Raises:
            CannotStart: it is not.
        """
        sized = ("--slots", str(SLOTS), "--queue", str(QUEUE), *arguments)
        with ServerProcess(self.engines, *sized, **settings) as server:
            yield server.wait_ready(120 * self.patience)

    def ending(self, server: ServerProcess) -> tuple[str, list[str]]:
        """After the load: places, then the server's end, then what is left of it. What was left, and complaints."""
        wrong: list[str] = []
        left = ""
        if server.launcher.poll() is None:
            if taken := self.places_left(server):
                left, wrong = f"{taken:g} places", [f"{taken:g} places are taken when all streams are over"]
            status = server.stop(60 * self.patience)
            if status != 0:
                wrong.append("it did not end on SIGTERM" if status is None else f"SIGTERM ended it with {status}")
        _, remains = self.gone(server)
        return "; ".join(filter(None, (left, remains))), wrong + ([f"left behind: {remains}"] if remains else [])

    def places_left(self, server: ServerProcess) -> float:
        """Places taken once nothing runs; NaN where the server does not say."""
        taken, deadline_s = float("nan"), now_s() + _PLACES_S * self.patience
        while taken != 0 and now_s() < deadline_s:
            with suppress(OSError, KeyError):
                taken = server.places()
            time.sleep(0.1)
        return taken

    def gone(self, server: ServerProcess) -> tuple[float | None, str]:
        """Wait until nothing of a dead server is left: how long that took, None where something stayed, and what."""
        begin_s, most_s = now_s(), self.limits.gone_s
        while remains := words(server.left()):
            if now_s() - begin_s > most_s:
                return None, remains
            time.sleep(0.05)
        return now_s() - begin_s, ""


def under_load(
    bench: Bench, part: str, fault: str, happen: Callable[[ServerProcess], None],
    judge: Callable[[Bench, Seen], list[str]], least_s: float = 5.0,
) -> Row:  # fmt: skip
    """One row: a server of its own under load, a fault, and what was seen until the service is back.

    Args:
        happen: makes the fault; it may take its time.
        judge: complaints about what was seen.
        least_s: how long is watched at least.
    """
    with bench.server() as server:
        with Watch(server.url, patience=bench.patience) as watch:
            watch.wait_running(60 * bench.patience)
            watch.mark()
            happen(server)
            watch.until(lambda seen: seen.harmless or seen.back_s is not None, least_s, 1.5 * bench.limits.back_s)
        seen = watch.seen()
        left, wrong = bench.ending(server)
        wrong = [*judge(bench, seen), *always(seen), *wrong]
        return Row(part, fault, described(seen), *times(seen), seen.failed, left, tuple(wrong))


def described(seen: Seen) -> str:
    """What callers saw, in words."""
    running, later = counted(e.code for e in seen.running), counted(e.code for e in seen.later)
    return f"in flight: {running}; later: {later}"


def times(seen: Seen) -> tuple[float | None, float | None, float | None]:
    return seen.not_ready_s, seen.ended_s, seen.back_s


def always(seen: Seen) -> list[str]:
    """Whatever happens: ends that make sense to callers, and texts that give nothing away."""
    return [*unfair(seen.codes), *telling(seen.errors)]


def survived(bench: Bench, seen: Seen) -> list[str]:
    """No caller may have noticed anything."""
    return [] if seen.harmless else [f"it was noticed: {described(seen)}"]


def restarted(bench: Bench, seen: Seen) -> list[str]:
    """Not ready, streams ended, back: each in time."""
    limits = bench.limits
    late = [each for each in seen.later if each.error and each.end_s - each.sent_s > limits.ended_s]
    return [
        *beyond("not ready", seen.not_ready_s, limits.not_ready_s),
        *(beyond("the streams in flight ended", seen.ended_s, limits.ended_s) if seen.failed else []),
        *beyond("back", seen.back_s, limits.back_s),
        *([f"{len(late)} later streams failed after more than {limits.ended_s:g} s"] if late else []),
    ]


def survived_or_restarted(bench: Bench, seen: Seen) -> list[str]:
    """Either."""
    return [] if seen.harmless else restarted(bench, seen)
