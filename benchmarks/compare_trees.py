"""Serving figures of two source trees in one run: this one and another revision of it, each with engines of its own.

    git worktree add /tmp/before REVISION && ... build its engines ...
    python -m benchmarks.compare_trees --other /tmp/before --engines engines/cpu --other-engines /tmp/before/engines/cpu

Both servers run side by side, each from its own tree; this tree's client drives them in turns (A B B A A B ...), so
that a noisy machine touches both alike. Only the servers differ: the tensors of the wire are the same in both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.balancer import free_port
from benchmarks.record import Results, number, record_head
from benchmarks.serving import run_clients, summarise
from loadtest.driver import Record
from vita_audio.contract.errors import VitaError
from vita_audio.machine import ROOT, revision
from vita_client import Client

_START_S, _STOP_S = 180.0, 45.0
_LOG_LINES = 20
#: Name in a row -> unit in words, and whether more of it is better.
FIGURES = {
    "ttfa_ms_p50": ("TTFA P50, ms", False),
    "ttfa_ms_p95": ("TTFA P95, ms", False),
    "rtf_p50": ("real-time factor P50", False),
    "tokens_per_s_all": ("tokens/s", True),
}


@contextlib.contextmanager
def serve(tree: Path, engines: Path, checkpoint: Path | None, slots: int) -> Iterator[str]:
    """A server of another tree, started by that tree's launcher; yields its gRPC address.

    Raises:
        VitaError: it is not ready in time, or ended; with the end of its output.
    """
    url = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "server", "--engines", str(engines.resolve()), "--slots", str(slots),
               "--grpc-port", url.rpartition(":")[2], "--metrics-port", str(free_port())]  # fmt: skip
    if checkpoint is not None:
        command += ["--checkpoint", str(checkpoint.resolve())]
    path = os.pathsep.join([str(tree), str(tree / "client"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=tree, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            with Client(url) as client:
                client.wait_ready(_START_S)
            yield url
        except VitaError as error:
            log.seek(0)
            tail = "\n".join(log.read().splitlines()[-_LOG_LINES:])
            raise VitaError(f"the server of {tree}: {error}\n{tail}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def measure(
    urls: tuple[str, str], mode: str, streams: int, requests: int, turns: int, tokens: int
) -> list[dict[str, Any]]:
    """A row for each server; they are asked in turns, with equal seeds in each pair of turns."""
    kept: list[tuple[list[Record], float]] = [([], 0.0), ([], 0.0)]
    for turn in range(turns):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            made, wall_s = run_clients(urls[which], mode, streams, requests, 1000 * turn, tokens)
            records, total_s = kept[which]
            kept[which] = (records + made, total_s + wall_s)
    return [summarise(mode, streams, *each) for each in kept]


def change(this: float, other: float, more_is_better: bool) -> float:
    """How much worse this tree is, as a share of the other: above 0 is slower."""
    return other / this - 1 if more_is_better else this / other - 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--other", type=Path, required=True, help="folder of the other source tree")
    add("--engines", type=Path, default=ROOT / "engines" / "cpu", help="of this tree")
    add("--other-engines", type=Path, help="of the other tree (default: its engines/cpu)")
    add("--checkpoint", type=Path, help="the checkpoint both were built from; each server checks it")
    add("--modes", nargs="+", default=["vanilla", "boost"])
    add("--streams", type=int, nargs="+", default=[1, 4])
    add("--requests", type=int, default=4, help="of each client in each turn")
    add("--turns", type=int, default=6, help="of each server in each row")
    add("--max-tokens", type=int, default=200)
    add("--fail-above", type=float, help="exit status 1 when a figure is worse by more than this many percent")
    add("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    other, rows = options.other.resolve(), list[dict[str, Any]]()
    if not (other / "server").is_dir():
        parser.error(f"--other: {options.other} is not valid: the folder of a source tree (it has no server/)")
    slots = max(8, *options.streams)
    results = Results(
        options.out, {**record_head("benchmarks.compare_trees", arguments), "other_revision": revision(other)}
    )
    try:
        with (
            serve(ROOT, options.engines, options.checkpoint, slots) as this_url,
            serve(other, options.other_engines or other / "engines" / "cpu", options.checkpoint, slots) as other_url,
        ):
            urls = (this_url, other_url)
            for url in urls:
                run_clients(url, options.modes[0], 2, 2, 10_000, options.max_tokens)  # warm-up, not counted
            for streams in options.streams:
                for mode in options.modes:
                    this, that = measure(urls, mode, streams, options.requests, options.turns, options.max_tokens)
                    rows.append({"mode": mode, "streams": streams, "this": this, "other": that})
                    results.save(rows=rows)
    except VitaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table, worst = Table("streams", "mode", "figure", "other", "this", "slower by"), 0.0
    for row in rows:
        for name, (title, more_is_better) in FIGURES.items():
            this, that = row["this"][name], row["other"][name]
            slower = change(this, that, more_is_better)
            worst = max(worst, slower)
            digits = 3 if name == "rtf_p50" else 0
            table.add_row(
                str(row["streams"]), row["mode"], title, number(that, digits), number(this, digits), f"{slower:+.1%}"
            )
    record = results.fields
    Console(width=120).print(
        f"{record['command']}\n{record['machine']}, {record['date']}\nthis: {record['revision']}, other: "
        f"{record['other_revision']}", table, f"slowest figure: {worst:+.1%}",
    )  # fmt: skip
    return 1 if options.fail_above is not None and 100 * worst > options.fail_above else 0


if __name__ == "__main__":
    sys.exit(main())
