"""What the first requests after readiness cost beside later ones, on the server's side and on the client's.

    python -m benchmarks.warm_up --engines engines/cpu              (about 6 minutes)

Every row is of fresh servers. "used" is a client whose connection is open and whose process has had an answer of
another server: what its first request costs more is the server's. "new" is a process of its own for every request,
which imports, connects and asks once: what it costs more than "used" is the client's. A round is of simultaneous
requests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.closed_loop import QUESTION
from benchmarks.record import Results, cells, record_head
from benchmarks.serving import STAGES
from loadtest.driver import Drive, Record
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_client import Client, build_request

#: Requests by name: greedy, so that all of one kind have the same answer.
REQUESTS: dict[str, dict[str, Any]] = {
    "text": {"text": "What is the weather like today?"},
    "speech": {"audio": QUESTION},
    "tts": {"text": "The train leaves at nine.", "task": "tts"},
}
CLIENTS = ("used", "new")
#: The request that the first is compared with.
LATER = 10
_TIMEOUT_S = 120.0

#: One round: time to first audio and the server's own stages until then, of each of its requests, in ms.
Round = list[tuple[float, dict[str, float]]]


def ask(url: str, kind: str, streams: int, rounds: int, max_tokens: int, connect: bool) -> list[Round]:
    """Send `rounds` rounds, one after the other; runs in the client's process.

    Args:
        connect: open the connection before the first round.

    Raises:
        VitaError: a stream failed or brought no sound.
    """
    request = build_request(**REQUESTS[kind], temperature=0.0, max_tokens=max_tokens, seed=0)
    with Client(url) as client, ThreadPoolExecutor(streams) as threads:
        list(threads.map(abs, range(streams)))  # threads are started on demand
        if connect:
            client.health()
        made = []
        for _ in range(rounds):
            records = threads.map(lambda drive: drive.run(client), [Drive(request, _TIMEOUT_S) for _ in range(streams)])
            made.append([_measured(record) for record in records])
    return made


def _measured(record: Record) -> tuple[float, dict[str, float]]:
    if record.error or record.ttfa_ms is None:
        raise VitaError(f"a stream brought no sound: {record.error or 'it was all silence'}")
    return record.ttfa_ms, {stage: record.first_stages_ms.get(stage, 0.0) for stage in STAGES}


def client_process() -> ProcessPoolExecutor:
    """One process that begins as a new interpreter."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def measure(server: TritonServer, client: str, used: ProcessPoolExecutor, row: dict[str, Any]) -> list[Round]:
    """All rounds on a server that has answered nothing yet."""
    arguments = (server.grpc_url, row["request"], row["streams"])
    if client == "used":
        return used.submit(ask, *arguments, row["rounds"], row["max_tokens"], True).result()
    made = []
    for _ in range(row["rounds"]):
        with client_process() as new:
            made += new.submit(ask, *arguments, 1, row["max_tokens"], False).result()
    return made


def summarise(starts: Sequence[Sequence[Round]]) -> dict[str, Any]:
    """Medians over servers, and over the streams of a round, by round; ratio of the first round to the later one."""

    def medians(value: Callable[[float, dict[str, float]], float]) -> list[float]:
        return [
            median(value(*each) for rounds in starts for each in rounds[number]) for number in range(len(starts[0]))
        ]

    ttfa, rest = medians(lambda ttfa_ms, _: ttfa_ms), medians(lambda ttfa_ms, stages: ttfa_ms - sum(stages.values()))
    stages = {stage: medians(lambda _, by_stage, stage=stage: by_stage[stage]) for stage in STAGES}  # type: ignore[misc]
    later = min(LATER, len(ttfa)) - 1
    return {"ttfa_ms": ttfa, "rest_ms": rest, "stages_ms": stages, "first_to_later": ttfa[0] / ttfa[later]}


SHOWN = "request|client|streams|no.|TTFA ms|prompt|speech tok.|LM queue|LM|dec. queue|decoder|rest|first / later"


def shown(row: dict[str, Any]) -> list[list[str]]:
    """Lines of a table: the first, the second and the later round."""
    lines = []
    for number in sorted({0, min(1, row["rounds"] - 1), min(LATER, row["rounds"]) - 1}):
        values = {**row, "number": number + 1, **{stage: row["stages_ms"][stage][number] for stage in STAGES}}
        values |= {"ttfa": row["ttfa_ms"][number], "rest": row["rest_ms"][number]}
        stages = " ".join(f"{stage}:1" for stage in STAGES)
        lines.append(cells(values, f"request client streams number ttfa:0 {stages} rest:1"))
    return [[*line, "" if line is not lines[-1] else f"{row['first_to_later']:.2f}"] for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--requests", nargs="+", choices=list(REQUESTS), default=list(REQUESTS))
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4], help="of a round; several: `used` alone")
    parser.add_argument("--starts", type=int, default=5, help="servers of each row")
    parser.add_argument("--rounds", type=int, default=12, help="of each server")
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--out", type=Path, default=None, help="also write the rows as JSON here")
    options = parser.parse_args()
    results = Results(options.out, record_head("benchmarks.warm_up"))
    # Later requests are the same as the first: their prompts must not be found in a slot.
    settings = ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0, prefix_cache="off")
    planned = [
        {"request": request, "client": client, "streams": streams, "rounds": options.rounds,
         "max_tokens": options.max_tokens}
        for streams in options.streams for client in options.clients for request in options.requests
        if streams == 1 or client == "used"
    ]  # fmt: skip
    starts: list[list[list[Round]]] = [[] for _ in planned]
    ready_s: list[float] = []
    with client_process() as used:
        with TritonServer(settings) as other:
            for request in options.requests:
                used.submit(ask, other.grpc_url, request, max(options.streams), 2, options.max_tokens, True).result()
        for _ in range(options.starts):
            for row, made in zip(planned, starts, strict=True):
                with TritonServer(settings) as server:
                    made.append(measure(server, row["client"], used, row))
                ready_s.append(server.start_seconds)
                rows = [{**row, **summarise(made)} for row, made in zip(planned, starts, strict=True) if made]
                results.save(start_s=median(ready_s), rows=rows)
    console = Console(width=max(140, Console().width))
    console.print(f"{results.fields['command']}\n{results.fields['machine']}, revision {results.fields['revision']}")
    table = Table(*SHOWN.split("|"), title="The first requests of a server (medians, ms)")
    for row in results.fields["rows"]:
        for line in shown(row):
            table.add_row(*line)
    console.print(table)
    console.print(f"server ready after {results.fields['start_s']:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
