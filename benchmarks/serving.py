"""Served speed on this machine: TTFA, real-time factor, tokens/s, and where each millisecond goes.

    python -m benchmarks.serving --engines engines/cpu

A real Triton server on loopback, real gRPC, closed loop: N clients, each sending its next request when the last has
ended. Modes are measured side by side in one run: slices go over all modes, so a noisy machine touches each alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.closed_loop import Callers, request_for
from benchmarks.record import Results, cells, percentile, record_head, spread
from loadtest.driver import Record
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_audio.contract.modes import NAMED_MODES

STAGES = ("prompt", "speech_tokenizer", "lm_queue", "lm", "decode_queue", "decode")
#: Those that are over before a response of the language model leaves it.
_BEFORE_DECODER = STAGES[:4]


def run_clients(
    url: str, mode: str, streams: int, requests: int, first_seed: int, max_tokens: int
) -> tuple[list[Record], float]:
    """`streams` closed-loop clients with `requests` spoken questions each: the records, and the wall time in seconds.

    Raises:
        VitaError: a stream failed or brought no sound: nothing to measure.
    """
    start = time.perf_counter()
    with Callers(
        url,
        streams,
        lambda caller, i: request_for("chat", mode, first_seed + caller * requests + i, max_tokens),
        requests,
    ) as callers:
        pass
    for record in callers.records:
        if record.error or record.ttfa_ms is None:
            raise VitaError(f"a stream of mode {mode} brought no sound: {record.error or 'it was all silence'}")
    return callers.records, time.perf_counter() - start


def hop_ms(record: Record) -> float:
    """Mean over the responses of the time that no stage accounts for."""
    hops, before = [], dict.fromkeys(STAGES, 0.0)
    for response in record.responses:
        stages = {stage: response.stages_ms.get(stage, 0.0) for stage in STAGES}
        own = sum(stages[stage] - before[stage] for stage in ("decode_queue", "decode"))
        elapsed_ms = (response.at_s - record.sent_s) * 1e3
        hops.append(elapsed_ms - own - sum(stages[stage] for stage in _BEFORE_DECODER))
        before = stages
    return mean(hops)


def first_stages(records: list[Record]) -> dict[str, float | None]:
    """Medians on the way to the first audible sound: each stage, and what none accounts for ("hops")."""
    spoken = [record for record in records if record.ttfa_ms is not None]
    medians = {
        f"first_{stage}_ms": percentile([record.first_stages_ms.get(stage, 0.0) for record in spoken], 50)
        for stage in STAGES
    }
    hops = [(record.ttfa_ms or 0.0) - sum(record.first_stages_ms.get(s, 0.0) for s in STAGES) for record in spoken]
    return {**medians, "first_hops_ms": percentile(hops, 50)}


def summarise(mode: str, streams: int, records: list[Record], wall_s: float) -> dict[str, Any]:
    """One row of the table."""
    return {
        "mode": mode,
        "streams": streams,
        "requests": len(records),
        **spread("ttfa_ms", [record.ttfa_ms for record in records]),
        **spread("rtf", [record.real_time_factor for record in records]),
        "tokens_per_s_stream": percentile([r.tokens / r.total_ms * 1e3 for r in records], 50),
        "tokens_per_s_all": sum(record.tokens for record in records) / wall_s,
        "lm_tokens_per_s_stream": percentile([r.tokens / r.stages_ms["lm"] * 1e3 for r in records], 50),
        "audio_s_per_s": sum(record.audio_s for record in records) / wall_s,
        "hop_ms_per_response": percentile(map(hop_ms, records), 50),
        **first_stages(records),
    }


SPEED = "streams|mode|TTFA P50 ms|P95|RTF P50|P95|tok/s per stream|LM alone|tok/s all|audio s/s"
WHERE = "streams|mode|TTFA ms|prompt|speech tok.|LM queue|LM|dec. queue|decoder|hops + sched.|share|per response"


def speed_cells(row: dict[str, Any]) -> list[str]:
    """The cells of `SPEED`."""
    return cells(
        row,
        "streams mode ttfa_ms_p50:0 ttfa_ms_p95:0 rtf_p50:3 rtf_p95:3 tokens_per_s_stream:0 lm_tokens_per_s_stream:0 "
        "tokens_per_s_all:0 audio_s_per_s:1",
    )


def where_cells(row: dict[str, Any]) -> list[str]:
    """The cells of `WHERE`."""
    stages = " ".join(f"first_{stage}_ms:1" for stage in (*STAGES, "hops"))
    share = {**row, "share": row["first_hops_ms"] / row["ttfa_ms_p50"]}
    return cells(share, f"streams mode ttfa_ms_p50:0 {stages} share:% hop_ms_per_response:1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--modes", nargs="+", default=list(NAMED_MODES))
    parser.add_argument("--requests", type=int, default=16, help="per row, at least one for each stream")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--slices", type=int, default=4, help="each row is measured in this many, modes in turn")
    parser.add_argument("--out", type=Path, default=None, help="also write the rows as JSON here")
    options = parser.parse_args()
    console = Console(width=max(140, Console().width))
    results = Results(options.out, record_head("benchmarks.serving"))
    rows: list[dict[str, Any]] = []
    slots = max(8, *options.streams)
    # The same requests come again and again: their prompts must not be found in a slot.
    settings = ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0, slots=slots, prefix_cache="off")
    with TritonServer(settings) as server:
        idle_mib = server.resident_bytes() / 2**20
        run_clients(server.grpc_url, "boost", 2, 2, 10_000, options.max_tokens)  # warm-up, not counted
        for streams in options.streams:
            kept: dict[str, tuple[list[Record], float]] = {mode: ([], 0.0) for mode in options.modes}
            each = max(1, options.requests // (streams * options.slices))
            for turn in range(options.slices):
                for mode in options.modes:
                    made, wall_s = run_clients(server.grpc_url, mode, streams, each, 1000 * turn, options.max_tokens)
                    records, total_s = kept[mode]
                    kept[mode] = (records + made, total_s + wall_s)
            rows += [summarise(mode, streams, *kept[mode]) for mode in options.modes]
        results.save(
            start_s=server.start_seconds, resident_mib_idle=idle_mib,
            resident_mib_loaded=server.resident_bytes() / 2**20, rows=rows,
        )  # fmt: skip
    record = results.fields
    console.print(f"{record['command']}\n{record['machine']}, {record['date']}, revision {record['revision']}")
    speed = Table(*SPEED.split("|"), title="Speed")
    where = Table(*WHERE.split("|"), title="Where the time to first audio goes (medians, ms)")
    for row in rows:
        speed.add_row(*speed_cells(row))
        where.add_row(*where_cells(row))
    console.print(speed, where)
    console.print(
        f"server ready after {record['start_s']:.1f} s; resident memory {idle_mib:.0f} MiB idle, "
        f"{record['resident_mib_loaded']:.0f} MiB after the run"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
