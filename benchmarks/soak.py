"""A long steady load: memory, threads and open files of every server process, streams that stay behind, underruns.

    python -m benchmarks.soak --engines engines/cpu --rate 1.6 --minutes 20

A real Triton server and `python -m loadtest` (open loop, constant rate, chats by voice, TTS and ASR, one in ten cut
short), both on loopback. Before it, all places at once ask the longest questions that the load can have, so that memory
does not grow with the longest question so far; a leak of the few MiB that they leave free does not show. Each process
of the server is looked at every few seconds. The run ends by itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.record import Results, record_head
from loadtest.picture import Picture, Series, write
from loadtest.report.files import FIGURES
from loadtest.workload import UserProfile
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import Client, ServerUnavailable

INTERVAL_S = 5.0
#: After the load: how long streams and their memory may take to go.
SETTLE_S = 15.0
MAX_MINUTES = 180.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the server. `resident_mib`, by process: memory with shared pages split between their users."""

    at_s: float
    resident_mib: dict[str, float]
    threads: int
    files: int
    running: float
    waiting: float


def ask_longest(server: TritonServer, times: int) -> None:
    """`times` as many of the load's longest questions (noise) as the server takes at once."""
    speech_s = UserProfile().speech_s.most
    noise = np.random.default_rng(0).normal(0, 0.05, round(speech_s * INPUT_SAMPLE_RATE_HZ)).astype(np.float32)

    def ask(_: int) -> None:
        with Client(server.grpc_url) as client:
            for _ in range(times):
                with suppress(ServerUnavailable):  # a place is free a moment after its answer
                    client.collect(audio=noise, timeout_s=60)

    places = server.options.slots + server.options.queue
    with ThreadPoolExecutor(places) as callers:
        list(callers.map(ask, range(places)))


def look(server: TritonServer, start: float) -> Look:
    """Raises OSError when the metrics port does not answer, psutil.Error when the server is gone."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    memory: dict[str, float] = {}
    threads = files = 0
    for process in family:
        memory[_name(process, memory)] = process.memory_full_info().pss / 2**20
        threads += process.num_threads()
        files += process.num_fds()
    streams = {"running": 0.0, "waiting": 0.0}
    for labels, value in metric(server, "vita_streams"):
        for state in streams:
            if f'state="{state}"' in labels:
                streams[state] += value
    return Look(time.monotonic() - start, memory, threads, files, **streams)


def metric(server: TritonServer, name: str) -> list[tuple[str, float]]:
    """(labels, value) of each series of a metric now."""
    with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return [(line.rsplit(" ", 1)[0], float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(f"{name}{{")]


def summarise(looks: list[Look], warm_up_s: float, run: dict[str, Any], underruns: float) -> dict[str, Any]:
    """What the looks between warm-up and the end of the load say, and the last one, after it."""
    steady = [each for each in looks[:-1] if each.at_s >= warm_up_s]
    quarter = max(1, len(steady) // 4)
    growth = {}
    for name in steady[0].resident_mib:
        values = [each.resident_mib.get(name, float("nan")) for each in steady]
        first, last = float(np.median(values[:quarter])), float(np.median(values[-quarter:]))
        growth[name] = {"first_mib": round(first, 1), "last_mib": round(last, 1), "share": round(last / first - 1, 4)}
    after = looks[-1]
    return {
        "memory": growth,
        "threads": {"least": min(e.threads for e in steady), "most": max(e.threads for e in steady)},
        "files": {"least": min(e.files for e in steady), "most": max(e.files for e in steady)},
        "left_behind": {"running": after.running, "waiting": after.waiting, "threads": after.threads},
        "server_underruns": underruns,
        "load": run,
    }


def draw(looks: list[Look], stem: Path) -> None:
    """`stem`_memory.svg (all processes and the three largest) and `stem`_streams.svg, both over time."""
    largest = sorted(looks[0].resident_mib, key=lambda name: -looks[0].resident_mib[name])[:3]
    memory = [Series("all", [(e.at_s / 60, sum(e.resident_mib.values())) for e in looks])]
    memory += [Series(n, [(e.at_s / 60, e.resident_mib[n]) for e in looks if n in e.resident_mib]) for n in largest]
    streams = [Series("running", [(e.at_s / 60, e.running) for e in looks])]
    streams.append(Series("waiting", [(e.at_s / 60, e.waiting) for e in looks]))
    for picture in (
        Picture("Memory of the server's processes", "minutes", "MiB", memory),
        Picture("Streams", "minutes", "streams", streams),
    ):
        write(stem.with_name(f"{stem.name}_{picture.title.split()[0].lower()}.svg"), picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--rate", type=float, required=True, help="streams per second; 80 %% of the capacity is usual")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=60.0, help="seconds that count for nothing")
    parser.add_argument("--longest", type=int, default=10, help="longest questions that each place is asked before")
    parser.add_argument("--prebuffer-ms", type=float, default=60.0, help="how long the callers' players wait")
    parser.add_argument("--out", type=Path, default=Path("out/soak/soak.json"), help="figures; pictures beside it")
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    if not 2 * options.warm_up / 60 <= options.minutes <= MAX_MINUTES:
        parser.error(f"--minutes: {options.minutes:g} is not valid: from twice --warm-up to {MAX_MINUTES:g}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    folder = options.out.parent / "soak_load"
    looks: list[Look] = []
    results = Results(options.out, record_head("benchmarks.soak"))
    with TritonServer(ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0, http_port=None)) as server:
        command = [
            sys.executable, "-m", "loadtest", "--url", server.grpc_url, "--rate", repr(options.rate),
            "--run-time", str(options.minutes * 60), "--warm-up", str(options.warm_up), "--out", str(folder),
            "--prebuffer-ms", repr(options.prebuffer_ms),
        ]  # fmt: skip
        ask_longest(server, options.longest)
        start = time.monotonic()
        with (options.out.parent / "soak_load.log").open("w") as log:
            load = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                while load.poll() is None:
                    looks.append(look(server, start))
                    time.sleep(INTERVAL_S)
            finally:
                if load.poll() is None:
                    load.terminate()
                    load.wait(timeout=30)
        time.sleep(SETTLE_S)
        looks.append(look(server, start))
        underruns = sum(value for _, value in metric(server, "vita_underruns_total"))
    figures = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    results.save(
        exit_code_of_the_load=load.returncode,
        **summarise(looks, options.warm_up, {name: figures[name] for name in ("streams", "slo", "errors")}, underruns),
        percentiles=figures["scenarios"]["all"],
        looks=[asdict(each) for each in looks[:: max(1, len(looks) // 120)]],
    )
    result = results.fields
    draw(looks, options.out.with_suffix(""))
    table = Table("process", "first quarter MiB", "last quarter MiB", "growth")
    for name, row in result["memory"].items():
        table.add_row(name, f"{row['first_mib']}", f"{row['last_mib']}", f"{row['share']:+.1%}")
    console.print(table)
    console.print(f"left behind: {result['left_behind']}; underruns by the server's count: {underruns:g}")
    console.print(f"wrote {options.out}")
    return 0


def _name(process: psutil.Process, taken: dict[str, float]) -> str:
    """The model a stub process runs, or the program's name; numbered where several are alike."""
    words = process.cmdline()
    name = next((Path(w).parent.parent.name for w in words if w.endswith("model.py")), process.name())
    number = sum(1 for other in taken if other == name or other.startswith(f"{name} "))
    return f"{name} {number + 1}" if number else name


if __name__ == "__main__":
    sys.exit(main())
