"""Signals that end a server, to its launcher alone and to every process of it, as a terminal and systemd send them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.faults.bench import Bench, described, times
from benchmarks.faults.rows import Row, telling, unfair
from benchmarks.faults.seen import Seen, Watch
from loadtest.clock import now_s
from loadtest.driver import DONE
from vita_client.errors import SHUTTING_DOWN

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ALONE, TREE = "to the launcher", "to every process"
#: Nothing listens any more, or the connection ends under a request that is on its way.
_LAST = frozenset({SHUTTING_DOWN, "unavailable", "stream_broken", DONE})
#: From the end of the last stream to the end of the process; what a client sends then finds a server or none.
_END_S = 3.0


def cells() -> Iterator[tuple[str, Callable[[Bench], Row]]]:
    for number in SIGNALS:
        for whom in (ALONE, TREE):
            yield f"{number.name} {whom}", partial(ended, number=number, whom=whom)


def ended(bench: Bench, number: signal.Signals, whom: str) -> Row:
    """Running streams finish, new ones are refused as "shutting down", status 0, and nothing is left."""
    with bench.server() as server:
        with Watch(server.url, patience=bench.patience) as watch:
            watch.wait_running(60 * bench.patience)
            fault_s = watch.mark()
            if whom == ALONE:
                server.launcher.send_signal(number)
            else:
                server.signal_tree(number)
            try:
                status = server.launcher.wait(60 * bench.patience)
            except subprocess.TimeoutExpired:
                status = None
            ended_s = now_s() - fault_s
        seen = watch.seen()
        _, left = bench.gone(server)
    wrong = judged(seen, status, ended_s - _END_S * bench.patience)
    if left:
        wrong.append(f"left behind: {left}")
    figures = {"ended_s": ended_s, "status": status}
    return Row(
        "signals", f"{number.name} {whom}", described(seen), *times(seen), seen.failed, left, tuple(wrong), figures
    )


def judged(seen: Seen, status: int | None, until_s: float) -> list[str]:
    """Complaints. `until_s`: from the signal, as long as refusals must say why."""
    drained = [each.code for each in seen.later if each.sent_s - seen.fault_s < until_s]
    wrong = unfair((each.code for each in seen.running), frozenset({DONE}))
    wrong += unfair(drained, frozenset({SHUTTING_DOWN, DONE})) + unfair((e.code for e in seen.later), _LAST)
    if status != 0:
        wrong.append("it did not end" if status is None else f"it ended with {status}")
    return wrong + telling(seen.errors)
