"""Surroundings that are not what a server expects: each is survived, or named in one line at once."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator

from benchmarks.closed_loop import request_for
from benchmarks.faults.bench import Bench
from benchmarks.faults.rows import Row, words
from benchmarks.server_process import ServerProcess
from loadtest.driver import DONE, Drive
from server.errors import CannotStart
from vita_client import Client

#: A proxy that refuses every connection.
_PROXY = "http://127.0.0.1:9"
#: A temporary folder on a file system of its own that has no room.
_FULL = 'mount -t tmpfs -o size=16k none "$TMPDIR" && exec "$@"'


def cells() -> Iterator[tuple[str, Callable[[Bench], Row]]]:
    proxy = {
        name: _PROXY
        for each in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
        for name in (each, each.upper())
    }
    yield "proxy variables", lambda bench: served(bench, "proxy variables", environment=proxy)
    yield "spaces in TMPDIR", lambda bench: served(bench, "spaces in TMPDIR", temporary="my $(dir) & 'more'")
    yield "launcher killed while it loads", killed_while_loading
    yield "TMPDIR full", full


def served(bench: Bench, fault: str, **settings: object) -> Row:
    """The server starts, serves and ends as ever."""
    with bench.server(**settings) as server:
        with Client(server.url) as client:
            record = Drive(request_for("chat", None, 1, 30), 30 * bench.patience).run(client)
        left, wrong = bench.ending(server)
    if record.code != DONE:
        wrong.append(f"a stream ended with {record.error}")
    return Row("environment", fault, record.code, failed=int(bool(record.error)), left=left, wrong=tuple(wrong))


def killed_while_loading(bench: Bench) -> Row:
    """Nothing stays, whatever was there already when the launcher was killed; the next start removes the files of one
    that had no guard yet."""
    lefts, swept, slowest_s, delays = [], 0, 0.0, (0.3, 0.8, 1.5, 2.5)
    for delay_s in delays:
        with ServerProcess(bench.engines) as server:
            time.sleep(delay_s)
            server.processes()  # names of shared memory go by their ids
            server.launcher.kill()
            server.launcher.wait()
            gone_s, left = bench.gone(server)
            if left and not server.left()["processes"]:
                with bench.server():
                    left, swept = words(server.left()), swept + 1
            lefts += [left] if left else []
            slowest_s = max(slowest_s, gone_s or 0.0)
    left = "; ".join(lefts)
    fault = f"launcher killed {', '.join(f'{each:g}' for each in delays)} s after its start"
    wrong = (f"left behind: {left}",) if left else ()
    callers = f"- ({swept} of {len(delays)} left files, which the next start removed)" if swept else "-"
    return Row("environment", fault, callers, left=left, wrong=wrong, figures={"gone_s": slowest_s})


def full(bench: Bench) -> Row:
    """No room for temporary files: the server does without, or one line says so."""
    fault = "TMPDIR full"
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        return Row("environment", fault, "not run: this machine lets no user mount a file system (unshare -rm)")
    try:
        return served(bench, fault, prefix=("unshare", "-rm", "sh", "-c", _FULL, "sh"))
    except CannotStart as error:
        said = str(error)
    named = re.search(r"(?i)no space|full|TMPDIR|temporary", said) and "Traceback" not in said
    return Row("environment", fault, said[-160:], wrong=() if named else (f"it said {said[-300:]!r}",))
