"""A long steady load: memory, threads and open files of every server process, streams that stay behind, underruns.

    python -m benchmarks.soak --engines engines/cpu --rate 1.6 --minutes 20
    python -m benchmarks.soak --engines engines/cpu --rate 1.3 --minutes 120 --kill-every 600

A real `python -m server` and `python -m loadtest` (open loop, constant rate, chats by voice, TTS and ASR, one in ten
cut short), both on loopback. Before it, all places at once ask the longest questions that the load can have, so that
memory does not grow with the longest question so far; a leak of the few MiB that they leave free does not show. Each
process of the server is looked at every few seconds. With --kill-every a random process below the launcher is killed
now and then: the server replaces its Triton, and the next one is looked at. The run ends by itself. Returns 1 when the
load ended early, or the server did not end well or left something behind.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.faults.kills import kill_one
from benchmarks.faults.rows import words
from benchmarks.record import Results, record_head
from benchmarks.server_process import ServerProcess
from loadtest.errors import LoadTestError
from loadtest.options import check_rate
from loadtest.picture import Picture, Series, write
from loadtest.report.files import FIGURES, read_figures
from loadtest.workload import UserProfile
from server.options import ServerOptions
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.stopping import stop_on_signals
from vita_client import Client, ServerUnavailable

INTERVAL_S = 5.0
#: After the load: how long streams and their memory may take to go.
SETTLE_S = 15.0
MAX_MINUTES = 180.0
#: After a kill: how long the server may take to be ready again before the run is given up.
BACK_S = 60.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the server. `resident_mib`, by process: memory with shared pages split between their users.
    `underruns`: of the server's own count, since its Triton began."""

    at_s: float
    resident_mib: dict[str, float]
    threads: int
    files: int
    running: float
    waiting: float
    underruns: float = 0.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, and how long the server was not ready after it."""

    at_s: float
    process: str
    back_s: float


def ask_longest(url: str, times: int) -> None:
    """`times` as many of the load's longest questions (noise) as the server takes at once."""
    speech_s = UserProfile().speech_s.most
    noise = np.random.default_rng(0).normal(0, 0.05, round(speech_s * INPUT_SAMPLE_RATE_HZ)).astype(np.float32)

    def ask(_: int) -> None:
        with Client(url) as client:
            for _ in range(times):
                with suppress(ServerUnavailable):  # a place is free a moment after its answer
                    client.collect(audio=noise, timeout_s=60)

    default = ServerOptions()
    places = default.slots + default.queue
    with ThreadPoolExecutor(places) as callers:
        list(callers.map(ask, range(places)))


def look(server: ServerProcess, start: float) -> Look:
    """Raises OSError when the metrics port does not answer, psutil.Error when a process is gone."""
    memory: dict[str, float] = {}
    threads = files = 0
    for name, found in server.processes().items():
        for number, process in enumerate(found):
            memory[f"{name} {number + 1}" if number else name] = process.memory_full_info().pss / 2**20
            threads += process.num_threads()
            files += process.num_fds()
    metrics = server.metrics()
    streams = {
        state: sum(v for key, v in metrics.items() if key.startswith("vita_streams{") and f'state="{state}"' in key)
        for state in ("running", "waiting")
    }
    underruns = sum(value for key, value in metrics.items() if key.startswith("vita_underruns_total"))
    return Look(time.monotonic() - start, memory, threads, files, **streams, underruns=underruns)


def kill(server: ServerProcess, choice: random.Random, start: float) -> Kill:
    """Kill a random process, and wait until the server is ready again.

    Raises:
        TimeoutError: it is not within BACK_S.
    """
    at_s = time.monotonic() - start
    process = kill_one(server, choice.choice)
    time.sleep(0.5)  # it may take so long to notice
    while True:
        with Client(server.url) as client:
            ready = client.health().ready
        back_s = time.monotonic() - start - at_s
        if ready:
            return Kill(at_s, process, back_s)
        if back_s > BACK_S:
            raise TimeoutError(f"the server is not back {BACK_S:g} s after a kill of {process}: {server.messages}")
        time.sleep(0.1)


def watch(
    server: ServerProcess, load: subprocess.Popen[bytes], kill_every_s: float | None, end_s: float
) -> tuple[list[Look], list[Kill]]:
    """Look at the server until the load is over, and once when it has settled. No kill comes near the end."""
    start, choice = time.monotonic(), random.Random(1)
    looks: list[Look] = []
    kills: list[Kill] = []
    while load.poll() is None:
        try:
            looks.append(look(server, start))
        except (OSError, psutil.Error):
            if not kills:  # else it is between two Tritons
                raise
        due_s = (kill_every_s or 0.0) * (len(kills) + 1)
        if kill_every_s is not None and due_s <= time.monotonic() - start and due_s < end_s - kill_every_s / 2:
            kills.append(kill(server, choice, start))
        time.sleep(INTERVAL_S)
    time.sleep(SETTLE_S)
    return [*looks, look(server, start)], kills


def summarise(looks: Sequence[Look], warm_up_s: float, run: dict[str, Any]) -> dict[str, Any]:
    """What the looks between warm-up and the end of the load say, and the last one, after it.

    Raises:
        LoadTestError: there are none.
    """
    # Between two Tritons, and while the next one loads, processes are missing.
    steady = [
        each
        for each in looks[:-1]
        if each.at_s >= warm_up_s and each.resident_mib.keys() == looks[0].resident_mib.keys()
    ]
    if not steady:
        raise LoadTestError(f"the load ended within the {warm_up_s:g} s of --warm-up: nothing was measured")
    quarter = max(1, len(steady) // 4)
    growth = {}
    values = {name: [each.resident_mib[name] for each in steady] for name in steady[0].resident_mib}
    values["all"] = [sum(each.resident_mib.values()) for each in steady]
    for name, each in values.items():
        first, last = float(np.median(each[:quarter])), float(np.median(each[-quarter:]))
        growth[name] = {"first_mib": round(first, 1), "last_mib": round(last, 1), "share": round(last / first - 1, 4)}
    after = looks[-1]
    return {
        "memory": growth,
        "threads": {"least": min(e.threads for e in steady), "most": max(e.threads for e in steady)},
        "files": {"least": min(e.files for e in steady), "most": max(e.files for e in steady)},
        "left_behind": {"running": after.running, "waiting": after.waiting, "threads": after.threads},
        "server_underruns": counted([each.underruns for each in looks]),
        "load": run,
    }


def figures_of(folder: Path, code: int, log: Path) -> dict[str, Any]:
    """What the load reports of itself, once it has ended with `code`.

    Raises:
        LoadTestError: it ended without a report.
    """
    if code not in (0, 1):
        raise LoadTestError(f"the load ended with exit code {code}: its words are in {log}")
    return read_figures(folder)


def problems(record: Mapping[str, Any], aborted: str) -> list[str]:
    """Why the run is no good. `aborted`: why the load ended early, or empty."""
    found = [f"the load is not complete: {aborted}"] if aborted else []
    if record["exit_code_of_the_server"] != 0:
        found.append(f"the server ended with {record['exit_code_of_the_server']}")
    if staying := sum(record["left_behind"][state] for state in ("running", "waiting")):
        found.append(f"{staying:g} streams stay behind")
    return found + ([f"left behind: {remains}"] if (remains := words(record["left"])) else [])


def counted(values: Sequence[float]) -> float:
    """What a counter counted in all that begins again at each restart."""
    total = before = 0.0
    for value in values:
        total += value - before if value >= before else value
        before = value
    return total


def draw(looks: Sequence[Look], kills: Sequence[Kill], stem: Path) -> None:
    """`stem`_memory.svg (all processes and the three largest, kills) and `stem`_streams.svg, both over time."""
    largest = sorted(looks[0].resident_mib, key=lambda name: -looks[0].resident_mib[name])[:3]
    whole = [(e.at_s / 60, sum(e.resident_mib.values())) for e in looks]
    memory = [Series("all", whole)]
    memory += [Series(n, [(e.at_s / 60, e.resident_mib[n]) for e in looks if n in e.resident_mib]) for n in largest]
    if kills:
        before = [next((mib for at, mib in reversed(whole) if at <= e.at_s / 60), 0.0) for e in kills]
        memory.append(
            Series("a process is killed", [(e.at_s / 60, y) for e, y in zip(kills, before, strict=True)], line=False)
        )
    streams = [Series("running", [(e.at_s / 60, e.running) for e in looks])]
    streams.append(Series("waiting", [(e.at_s / 60, e.waiting) for e in looks]))
    for picture in (
        Picture("Memory of the server's processes", "minutes", "MiB", memory),
        Picture("Streams", "minutes", "streams", streams),
    ):
        write(stem.with_name(f"{stem.name}_{picture.title.split()[0].lower()}.svg"), picture)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--rate", type=float, required=True, help="streams per second; 80 %% of the capacity is usual")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=60.0, help="seconds that count for nothing")
    parser.add_argument("--longest", type=int, default=10, help="longest questions that each place is asked before")
    parser.add_argument("--prebuffer-ms", type=float, default=60.0, help="how long the callers' players wait")
    parser.add_argument("--kill-every", type=float, metavar="SECONDS", help="kill a random process so often")
    parser.add_argument("--note", default="", help="what a reader has to know of this run, as other work beside it")
    parser.add_argument("--out", type=Path, default=Path("out/soak/soak.json"), help="figures; pictures beside it")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    if not 2 * options.warm_up / 60 <= options.minutes <= MAX_MINUTES:
        parser.error(f"--minutes: {options.minutes:g} is not valid: from twice --warm-up to {MAX_MINUTES:g}")
    if options.kill_every is not None and not options.kill_every >= 10:
        parser.error(f"--kill-every: {options.kill_every:g} is not valid: at least 10 seconds")
    try:
        check_rate("--rate", options.rate)
    except LoadTestError as error:
        parser.error(str(error))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    folder = options.out.parent / f"{options.out.stem}_load"
    (folder / FIGURES).unlink(missing_ok=True)  # of a run before
    results = Results(options.out, record_head("benchmarks.soak", arguments))
    with ServerProcess(options.engines) as server:
        server.wait_ready()
        command = [
            sys.executable, "-m", "loadtest", "--url", server.url, "--rate", repr(options.rate),
            "--run-time", str(options.minutes * 60), "--warm-up", str(options.warm_up), "--out", str(folder),
            "--prebuffer-ms", repr(options.prebuffer_ms),
        ]  # fmt: skip
        ask_longest(server.url, options.longest)
        log_path = options.out.parent / f"{folder.name}.log"
        with log_path.open("w") as log:
            load = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                looks, kills = watch(server, load, options.kill_every, options.minutes * 60)
            finally:
                if load.poll() is None:
                    load.terminate()
                    load.wait(timeout=30)
        status, left = server.stop(), server.left()
    try:
        figures = figures_of(folder, load.returncode, log_path)
        summary = summarise(looks, options.warm_up, {name: figures[name] for name in ("streams", "slo", "errors")})
    except LoadTestError as error:
        console.print(f"error: {error}", markup=False)
        return 1
    results.save(
        note=options.note,
        exit_code_of_the_load=load.returncode,
        exit_code_of_the_server=status,
        **summary,
        percentiles=figures["scenarios"]["all"],
        kills=[asdict(each) for each in kills],
        left=left,
        looks=[asdict(each) for each in looks[:: max(1, len(looks) // 120)]],
    )
    result = results.fields
    draw(looks, kills, options.out.with_suffix(""))
    table = Table("process", "first quarter MiB", "last quarter MiB", "growth")
    for name, row in result["memory"].items():
        table.add_row(name, f"{row['first_mib']}", f"{row['last_mib']}", f"{row['share']:+.1%}")
    console.print(table)
    console.print(
        f"left behind: {result['left_behind']}; underruns by the server's count: {result['server_underruns']:g}"
    )
    if kills:
        slowest = max(each.back_s for each in kills)
        console.print(
            f"{len(kills)} kills, ready again after {slowest:.1f} s at most; in the end {left}, status {status}"
        )
    console.print(f"wrote {options.out}")
    wrong = problems(result, figures["aborted"])
    for each in wrong:
        console.print(f"error: {each}", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    stop_on_signals()  # servers end with it
    sys.exit(main())
