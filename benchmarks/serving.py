"""Served speed on this machine: time to first audio, real-time factor, tokens/s, and where each millisecond goes.

    python -m benchmarks.serving --engines engines/cpu

A real Triton server on loopback, real gRPC, closed loop: N clients, each sending its next request when the last has
ended. Modes are measured side by side in one run: rounds go over all modes, so a noisy machine touches each alike.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.machine import describe_machine
from vita_client import Client, Pcm, StatusUpdate

QUESTION = Path(__file__).parent.parent / "examples" / "question.wav"
STAGES = ("prompt", "speech_tokenizer", "lm_queue", "lm", "decode_queue", "decode")


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times in ms; `stages_ms` is what the server says happened before the first sound left it."""

    ttfa_ms: float
    elapsed_ms: float
    audio_s: float
    tokens: int
    real_time_factor: float
    lm_ms: float  # admitted to last token, as the language model stage saw it
    stages_ms: dict[str, float]
    hop_ms: float  # the mean over responses of what no stage accounts for

    @property
    def first_hops_ms(self) -> float:
        return self.ttfa_ms - sum(self.stages_ms.values())


def run_request(client: Client, mode: str, seed: int, max_tokens: int) -> Sample:
    """A spoken question, answered; sampled, so that answers differ in content but not from run to run."""
    first: dict[str, float] = {}
    hops: list[float] = []
    previous: dict[str, float] = {}
    status = None
    got_sound = False
    stream = client.stream(
        audio=QUESTION, mode=mode, max_tokens=max_tokens, temperature=1.0, top_k=50, seed=seed, timeout_s=120
    )
    with stream:
        for event in stream:
            if isinstance(event, Pcm):
                got_sound = True
            elif isinstance(event, StatusUpdate):
                status = event.status
                timings = {stage: status.timings_ms.get(stage, 0.0) for stage in STAGES}
                if got_sound and not first:
                    first = timings
                own = sum(timings[s] - previous.get(s, 0.0) for s in ("decode_queue", "decode"))
                before = sum(timings[s] for s in ("prompt", "speech_tokenizer", "lm_queue", "lm"))
                hops.append(stream.metrics.elapsed_ms - before - own)
                previous = timings
    metrics = stream.metrics
    if status is None or metrics.ttfa_ms is None:
        raise RuntimeError(f"a stream of mode {mode}, seed {seed} brought no sound: nothing to measure")
    return Sample(
        ttfa_ms=metrics.ttfa_ms,
        elapsed_ms=metrics.elapsed_ms,
        audio_s=metrics.audio_s,
        tokens=metrics.tokens,
        real_time_factor=metrics.real_time_factor or 0.0,
        lm_ms=previous["lm"],
        stages_ms=first,
        hop_ms=float(np.mean(hops)),
    )


def run_clients(
    url: str, mode: str, streams: int, requests: int, first_seed: int, max_tokens: int
) -> tuple[list[Sample], float]:
    """`streams` closed-loop clients, `requests` each; the samples and the wall time in seconds."""
    samples: list[Sample] = []
    faults: list[BaseException] = []

    def caller(number: int) -> None:
        try:
            with Client(url) as client:
                for i in range(requests):
                    samples.append(run_request(client, mode, first_seed + number * requests + i, max_tokens))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            faults.append(error)

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(streams)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return samples, time.perf_counter() - start


def percentile(values: Iterable[float], q: float) -> float:
    return float(np.percentile(list(values), q))


def summarise(mode: str, streams: int, samples: list[Sample], wall_s: float) -> dict[str, float | str]:
    """One row of the table. Stage times are medians on the way to the first sound."""
    row: dict[str, float | str] = {
        "mode": mode,
        "streams": streams,
        "requests": len(samples),
        "ttfa_p50_ms": percentile((s.ttfa_ms for s in samples), 50),
        "ttfa_p95_ms": percentile((s.ttfa_ms for s in samples), 95),
        "rtf_p50": percentile((s.real_time_factor for s in samples), 50),
        "rtf_p95": percentile((s.real_time_factor for s in samples), 95),
        "tokens_per_s_stream": percentile((s.tokens / s.elapsed_ms * 1e3 for s in samples), 50),
        "tokens_per_s_all": sum(s.tokens for s in samples) / wall_s,
        "lm_tokens_per_s_stream": percentile((s.tokens / s.lm_ms * 1e3 for s in samples), 50),
        "audio_s_per_s": sum(s.audio_s for s in samples) / wall_s,
        "hop_ms_per_response": percentile((s.hop_ms for s in samples), 50),
        "first_hops_ms": percentile((s.first_hops_ms for s in samples), 50),
    }
    for stage in STAGES:
        row[f"first_{stage}_ms"] = percentile((s.stages_ms[stage] for s in samples), 50)
    return row


SPEED = "streams|mode|TTFA P50 ms|P95|RTF P50|P95|tok/s per stream|LM alone|tok/s all|audio s/s"
WHERE = "streams|mode|TTFA ms|prompt|speech tok.|LM queue|LM|dec. queue|decoder|hops + sched.|share|per response"


def tables(rows: list[dict[str, float | str]]) -> list[Table]:
    speed = Table(*SPEED.split("|"), title="Speed")
    where = Table(*WHERE.split("|"), title="Where the time to first audio goes (medians, ms)")
    for r in rows:
        key = (str(r["streams"]), str(r["mode"]))
        times = [f"{r['ttfa_p50_ms']:.0f}", f"{r['ttfa_p95_ms']:.0f}", f"{r['rtf_p50']:.3f}", f"{r['rtf_p95']:.3f}"]
        rates = ("tokens_per_s_stream", "lm_tokens_per_s_stream", "tokens_per_s_all")
        speed.add_row(*key, *times, *(f"{r[rate]:.0f}" for rate in rates), f"{r['audio_s_per_s']:.1f}")
        stages = [f"{r[f'first_{stage}_ms']:.1f}" for stage in STAGES]
        share = float(r["first_hops_ms"]) / float(r["ttfa_p50_ms"])
        hops = [f"{r['first_hops_ms']:.1f}", f"{share:.0%}", f"{r['hop_ms_per_response']:.1f}"]
        where.add_row(*key, times[0], *stages, *hops)
    return [speed, where]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--modes", nargs="+", default=list(NAMED_MODES))
    parser.add_argument("--requests", type=int, default=16, help="per row, at least one for each stream")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4, help="each row is measured in this many slices, modes in turn")
    parser.add_argument("--out", type=Path, default=None, help="also write the rows as JSON here")
    options = parser.parse_args()
    console = Console(width=max(140, Console().width))
    machine = describe_machine()
    command = shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]])
    rows: list[dict[str, float | str]] = []
    slots = max(options.streams)
    with TritonServer(
        ServerOptions(engines=options.engines, grpc_port=0, metrics_port=0, slots=max(slots, 8))
    ) as server:
        idle_mb = server.resident_bytes() / 2**20
        run_clients(server.grpc_url, "boost", 2, 2, 10_000, options.max_tokens)  # warm-up, not counted
        for streams in options.streams:
            kept: dict[str, tuple[list[Sample], float]] = {mode: ([], 0.0) for mode in options.modes}
            each = max(1, options.requests // (streams * options.rounds))
            for turn in range(options.rounds):
                for mode in options.modes:
                    made, wall_s = run_clients(server.grpc_url, mode, streams, each, 1000 * turn, options.max_tokens)
                    samples, total_s = kept[mode]
                    kept[mode] = (samples + made, total_s + wall_s)
            rows += [summarise(mode, streams, *kept[mode]) for mode in options.modes]
        loaded_mb = server.resident_bytes() / 2**20
        start_s = server.start_seconds
    console.print(f"{command}\n{machine}, {date.today()}")
    for table in tables(rows):
        console.print(table)
    alone = {r["mode"]: float(r["lm_tokens_per_s_stream"]) for r in rows if r["streams"] == options.streams[0]}
    if {"turbo", "vanilla"} <= alone.keys():
        ratio = alone["turbo"] / alone["vanilla"]
        console.print(f"turbo / vanilla, language model tokens/s at {options.streams[0]} stream: {ratio:.2f}x")
    console.print(
        f"server ready after {start_s:.1f} s; resident memory {idle_mb:.0f} MiB idle, {loaded_mb:.0f} MiB after the run"
    )
    if options.out:
        record = {
            "command": command, "machine": machine, "date": str(date.today()), "start_s": start_s,
            "resident_mib_idle": idle_mb, "resident_mib_loaded": loaded_mb, "rows": rows,
        }  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
