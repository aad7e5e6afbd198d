"""Random kills of random processes under load: the service comes back each time, and nothing is left in the end.

Most come when the service is back from the one before, some while the server is still starting again.
The launcher is not among them: without it there is nothing that starts the server again (`benchmarks.faults.matrix`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil

from benchmarks.faults.bench import Bench
from benchmarks.faults.rows import Row, beyond, counted, telling, unfair
from benchmarks.faults.seen import Watch
from benchmarks.record import percentile
from benchmarks.server_process import LAUNCHER, ServerProcess
from loadtest.clock import now_s
from loadtest.driver import Record

#: Share of kills that have another one soon after them, and how soon.
_EARLY, _EARLY_S = 0.1, (0.3, 2.0)


def cells() -> Iterator[tuple[str, Callable[[Bench], Row]]]:
    yield "random kills", kills


def kills(bench: Bench) -> Row:
    """`sizes["kills"]` kills, spread over about `sizes["kill_minutes"]`: each when the service is back."""
    count, most_s = round(bench.sizes["kills"]), 60 * bench.sizes["kill_minutes"]
    limit_s = 2 * most_s * bench.patience  # what restarts take is not known before
    random, back_s = bench.random("kills"), bench.limits.back_s
    done: list[dict[str, Any]] = []
    killed: list[str] = []
    wrong: list[str] = []
    # Kills may come in a row that the launcher would give up after; what it does then is in its own tests.
    with bench.server("--restarts", str(count)) as server:
        with Watch(server.url, patience=bench.patience) as watch:
            watch.wait_running(60 * bench.patience)
            begin_s = now_s()
            while len(killed) < count and not wrong and server.launcher.poll() is None:
                if now_s() - begin_s > limit_s:
                    wrong.append(f"{len(killed)} of {count} kills in {limit_s / 60:.1f} minutes")
                    break
                due_s = begin_s + (len(killed) + random.uniform(0.2, 1.0)) * most_s / count
                time.sleep(max(0.2, due_s - now_s()))
                watch.mark()
                names = [kill_one(server, random.choice)]
                if random.random() < _EARLY:
                    time.sleep(random.uniform(*_EARLY_S))
                    names.append(kill_one(server, random.choice))
                killed += filter(None, names)
                watch.until(lambda seen: seen.back_s is not None or server.launcher.poll() is not None, 0.5, 2 * back_s)
                seen = watch.seen()
                done.append(
                    {"processes": names, "not_ready_s": seen.not_ready_s, "ended_s": seen.ended_s,
                     "back_s": seen.back_s, "failed": seen.failed}
                )  # fmt: skip
                wrong += beyond(f"back after kill {len(killed)} ({', '.join(names)})", seen.back_s, back_s)
        if server.launcher.poll() is not None:
            wrong.append(f"the launcher ended: {server.messages.strip()[-300:]}")
        streams = [*watch.streams, *watch.probes]
        left, remains = bench.ending(server)
    wrong += remains + every_stream_ended(watch, streams)
    figures = {
        "kills": len(killed), "minutes": (now_s() - begin_s) / 60, "by_process": dict(Counter(killed)),
        "back_s_p50": percentile([e["back_s"] for e in done], 50), "each": done,
    }  # fmt: skip
    return Row(
        "kills", f"{len(killed)} random kills", counted(each.code for each in streams),
        worst(done, "not_ready_s"), worst(done, "ended_s"), worst(done, "back_s"), sum(each["failed"] for each in done),
        left, tuple(wrong), figures,
    )  # fmt: skip


def kill_one(server: ServerProcess, choice: Callable[[list[Any]], Any]) -> str:
    """Kill a process below the launcher, each kind as likely; its name, empty where there was none."""
    found = {name: each for name, each in server.processes().items() if name != LAUNCHER}
    if not found:
        return ""
    name: str = choice(sorted(found))
    with suppress(psutil.Error):
        choice(found[name]).kill()
    return name


def every_stream_ended(watch: Watch, streams: list[Record]) -> list[str]:
    """Complaints: a stream without an end, one that only its caller's deadline ended, or an end that says nothing."""
    ended = len(watch.streams)
    lost = [f"{watch.sent} streams were sent and {ended} ended"] if watch.sent != ended else []
    return [*lost, *unfair(each.code for each in streams), *telling(each.error for each in streams)]


def worst(done: list[dict[str, Any]], name: str) -> float | None:
    """None where nothing was seen."""
    return max((each[name] for each in done if each[name] is not None), default=None)
