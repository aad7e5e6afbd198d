"""What a conversation costs: turns with and without the prefix cache, long questions, and more talkers than slots.

    python -m benchmarks.conversation --engines engines/cpu              (about 2 minutes)

"turns": the same spoken question asked again and again in one conversation; time to the first sound (TTFA) of the
first and of the tenth turn. "question": from the end of a question that was appended bit by bit, ten times as fast as
it is spoken, to the first sound of its answer. "talkers": conversations that take turns on a server with fewer slots;
how many of the later turns found their beginning in a slot, and what share of all prompt tokens was reused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from benchmarks.closed_loop import QUESTION
from benchmarks.record import Results, record_head
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_client import Client, Pcm

SLOTS = 4
#: Of an answer: conversations of ten turns must fit the context.
_MAX_TOKENS = 120
_CHUNK_S = 0.1
_FASTER = 10

Row = dict[str, Any]


def question() -> tuple[np.ndarray, int]:
    """The spoken question of the examples: int16 [samples], and its rate in Hz."""
    return soundfile.read(QUESTION, dtype="int16")


def turns(url: str, count: int, repeats: int) -> Row:
    """TTFA of each turn, in ms: medians over conversations. A turn without sound counts in none."""
    samples, rate = question()
    seen: list[list[float]] = [[] for _ in range(count)]
    reused, read = 0, 0
    with Client(url) as client:
        for seed in range(repeats):
            talk = client.conversation(seed=seed, max_tokens=_MAX_TOKENS)
            for each in seen:
                talk.append_audio(samples, rate)
                reply = talk.respond().collect()
                assert reply.status is not None
                reused, read = reused + reply.status.cached_tokens, read + reply.status.prompt_tokens
                if reply.metrics.ttfa_ms is not None:
                    each.append(reply.metrics.ttfa_ms)
    ttfa = [median(each) if each else None for each in seen]
    return {"ttfa_ms": ttfa, "prompt_tokens": read, "reused_tokens": reused}


def end_to_sound(url: str, seconds: float, repeats: int) -> Row:
    """From the end of a question of `seconds` that was appended bit by bit to the first sound, in ms: median."""
    samples, rate = question()
    spoken = np.tile(samples, int(np.ceil(seconds * rate / len(samples))))[: int(seconds * rate)]
    step, waits = int(_CHUNK_S * rate), []
    with Client(url) as client:
        for seed in range(repeats):
            talk = client.conversation(seed=seed, max_tokens=_MAX_TOKENS)
            shift = np.roll(spoken, seed * step)  # another question each time: none is found whole
            for start in range(0, len(shift), step):
                talk.append_audio(shift[start : start + step], rate)
                time.sleep(_CHUNK_S / _FASTER)
            asked_s = time.perf_counter()
            with talk.respond() as answer:
                if any(isinstance(event, Pcm) for event in answer):
                    waits.append((time.perf_counter() - asked_s) * 1e3)
    if not waits:
        raise VitaError(f"no answer to a question of {seconds:g} s had sound")
    return {"seconds": seconds, "wait_ms": median(waits), "answers": len(waits)}


def talkers(url: str, conversations: int, rounds: int) -> Row:
    """Conversations by turns, as many at once as there are slots."""
    samples, rate = question()
    with Client(url) as client, ThreadPoolExecutor(SLOTS) as threads:
        talks = [client.conversation(seed=seed, max_tokens=_MAX_TOKENS) for seed in range(conversations)]
        hits = tokens = reused = 0

        def turn(number: int) -> tuple[int, int]:
            talks[number].append_audio(np.roll(samples, number * 320), rate)
            status = talks[number].respond().collect().status
            assert status is not None
            return status.prompt_tokens, status.cached_tokens

        for each in range(rounds):
            for prompt, cached in threads.map(turn, range(conversations)):
                tokens, reused = tokens + prompt, reused + cached
                hits += each > 0 and cached > prompt / 2
    return {
        "conversations": conversations, "slots": SLOTS, "rounds": rounds,
        "hit_rate": hits / (conversations * (rounds - 1)), "reused_share": reused / tokens,
    }  # fmt: skip


def shown(record: Mapping[str, Any]) -> list[list[str]]:
    """Lines of a table: what, with and without the prefix cache."""

    def both(name: str, of: Any, form: str) -> list[str]:
        values = [of(record[cache]) for cache in ("on", "off")]
        return [name, *("-" if value is None else format(value, form) for value in values)]

    count = len(record["on"]["turns"]["ttfa_ms"])
    lines = [both(f"turn {n}, TTFA ms", lambda r, n=n: r["turns"]["ttfa_ms"][n - 1], ".0f") for n in (1, count)]
    for index, row in enumerate(record["on"]["questions"]):
        name = f"question of {row['seconds']:g} s, end to first sound ms"
        lines.append(both(name, lambda r, i=index: r["questions"][i]["wait_ms"], ".0f"))
    for row in record["on"]["talkers"]:
        name = f"{row['conversations']} conversations on {row['slots']} slots, later turns found"
        lines.append([name, f"{row['hit_rate']:.0%} (tokens reused: {row['reused_share']:.0%})", "-"])
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 20.0], help="of a question")
    parser.add_argument("--talkers", type=int, nargs="+", default=[4, 50], help="conversations that take turns")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="also write the record as JSON here")
    options = parser.parse_args(arguments)
    results = Results(options.out, record_head("benchmarks.conversation", arguments))
    for cache in ("on", "off"):
        settings = ServerOptions(
            engines=options.engines, grpc_port=0, metrics_port=0, slots=SLOTS, queue=SLOTS, prefix_cache=cache
        )
        with TritonServer(settings) as server:
            turns(server.grpc_url, 1, 3)  # not counted
            measured = {
                "turns": turns(server.grpc_url, options.turns, options.repeats),
                "questions": [end_to_sound(server.grpc_url, s, options.repeats) for s in options.seconds],
                "talkers": [talkers(server.grpc_url, n, 3) for n in options.talkers] if cache == "on" else [],
            }
            results.save(**{cache: measured})
    console = Console(width=max(120, Console().width))
    console.print(f"{results.fields['command']}\n{results.fields['machine']}, revision {results.fields['revision']}")
    table = Table("", "prefix cache on", "off", title="A conversation")
    for line in shown(results.fields):
        table.add_row(*line)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
