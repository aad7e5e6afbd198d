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
from loadtest.clock import now_s
from loadtest.driver import DONE, Drive
from vita_client import Client

#: A proxy that refuses every connection.
_PROXY = "http://127.0.0.1:9"
#: What a start may take that cannot succeed.
_REFUSED_S = 20.0
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
    """Nothing stays, whatever was there already when the launcher was killed."""
    lefts, slowest_s, delays = [], 0.0, (0.3, 0.8, 1.5, 2.5)
    for delay_s in delays:
        with ServerProcess(bench.engines) as server:
            time.sleep(delay_s)
            server.processes()  # names of shared memory go by their ids
            server.launcher.kill()
            server.launcher.wait()
            gone_s, left = bench.gone(server)
            lefts += [left] if left else []
            slowest_s = max(slowest_s, gone_s or 0.0)
    left = "; ".join(lefts)
    fault = f"launcher killed {', '.join(f'{each:g}' for each in delays)} s after its start"
    wrong = (f"left behind: {left}",) if left else ()
    return Row("environment", fault, "-", left=left, wrong=wrong, figures={"gone_s": slowest_s})


def full(bench: Bench) -> Row:
    """No room for temporary files: one line that says so, and status 1."""
    fault = "TMPDIR full"
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        return Row("environment", fault, "not run: this machine lets nobody mount a file system (unshare -rm)")
    with ServerProcess(bench.engines, prefix=("unshare", "-rm", "sh", "-c", _FULL, "sh")) as server:
        begin_s, limit_s = now_s(), _REFUSED_S * bench.patience
        try:
            status = server.launcher.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        took_s, said = now_s() - begin_s, server.messages.strip()
        processes = server.left()["processes"]
    wrong = []
    if status is None:
        wrong.append(f"it was still starting after {limit_s:g} s")
    elif status != 1:
        wrong.append(f"it ended with {status}")
    if not re.search(r"(?i)no space|full|TMPDIR|temporary", said) or said.count("\n") > 1 or "Traceback" in said:
        wrong.append(f"it said {said[-200:]!r}")
    left = words({"processes": processes})
    return Row("environment", fault, said[-160:], ended_s=took_s, left=left, wrong=(*wrong, *([left] if left else [])))
