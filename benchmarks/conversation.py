"""What a conversation costs: turns with and without the prefix cache, long questions, and more talkers than slots.

    python -m benchmarks.conversation --engines engines/cpu              (about 4 minutes)
    python -m benchmarks.conversation --parts growing --speech FOLDER    (recordings instead of the server's own voice)

"turns": the same spoken question asked again and again in one conversation; time to the first sound (TTFA) of the
first and of the tenth turn. "question": from the end of a question that was appended bit by bit, ten times as fast as
it is spoken, to the first sound of its answer. "talkers": conversations that take turns on a server with fewer slots;
how many of the later turns found their beginning in a slot, and what share of all prompt tokens was reused. "replicas":
each turn at one of two servers, drawn at random, against the same turns at one. "growing": speech that goes on, and how
often that changes what was tokenized of it (`benchmarks/growing_speech.py`).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from benchmarks.closed_loop import QUESTION, SENTENCES
from benchmarks.growing_speech import Speech, growth, kinds
from benchmarks.record import Results, record_head
from loadtest.workload import load_voices
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.contract.errors import VitaError
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ, OUTPUT_SAMPLE_RATE_HZ
from vita_audio.engines.manifest import load_manifest
from vita_audio.engines.registry import open_speech_tokenizer
from vita_audio.engines.source import EngineSource
from vita_audio.speech_features import to_16_khz
from vita_client import Client, Pcm

SLOTS = 4
#: Of an answer: conversations of ten turns must fit the context.
_MAX_TOKENS = 120
_CHUNK_S = 0.1
_FASTER = 10
PARTS = ("turns", "questions", "talkers", "replicas", "growing")
_REPLICA_TALKS, _REPLICA_TURNS = 12, 4
#: Of the server's own voice, for "growing".
_CLIPS, _CLIP_S, _PAUSE_S = 4, 28.0, 0.4

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
            # A question of its own: the first turn of the conversation before is still there, and would be found whole.
            shifted = np.roll(samples, seed * int(_CHUNK_S * rate))
            for each in seen:
                talk.append_audio(shifted, rate)
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


def replicas(urls: Sequence[str], seed: int = 1) -> Row:
    """Greedy conversations, each turn at a server of `urls` that is drawn at random, and all of them at the first."""
    samples, rate = question()
    choice = random.Random(seed)

    def talk(number: int, chosen: Sequence[Client]) -> tuple[tuple[int, ...], int]:
        """All ids of a conversation with a turn at each client, and how many turns found their beginning."""
        history: tuple[int, ...] = ()
        found = 0
        for turn, client in enumerate(chosen):
            conversation = client.conversation(temperature=0.0, max_tokens=_MAX_TOKENS)
            conversation.resume(history)
            conversation.append_audio(np.roll(samples, (number * 7 + turn) * 320), rate)
            status = conversation.respond().collect().status
            history = conversation.history
            found += turn > 0 and status is not None and status.cached_tokens > status.prompt_tokens / 2
        return history, found

    clients = [Client(url) for url in urls]
    try:
        drawn = [choice.choices(clients, k=_REPLICA_TURNS) for _ in range(_REPLICA_TALKS)]
        either = [talk(number, chosen) for number, chosen in enumerate(drawn)]
        one = [talk(number, clients[:1] * _REPLICA_TURNS) for number in range(_REPLICA_TALKS)]
    finally:
        for client in clients:
            client.close()
    later = _REPLICA_TALKS * (_REPLICA_TURNS - 1)
    return {
        "conversations": _REPLICA_TALKS, "replicas": len(urls),
        "equal": sum(left == right for (left, _), (right, _) in zip(either, one, strict=True)),
        "hit_rate": sum(found for _, found in either) / later, "hit_rate_one": sum(found for _, found in one) / later,
    }  # fmt: skip


def spoken(url: str) -> list[Speech]:
    """Clips of about 28 s in the server's own voice: float32 [samples], 16 kHz."""
    pause = np.zeros(int(_PAUSE_S * INPUT_SAMPLE_RATE_HZ), np.float32)
    clips: list[Speech] = []
    with Client(url) as client:
        for seed in range(_CLIPS):
            parts: list[Speech] = []
            while sum(map(len, parts)) < _CLIP_S * INPUT_SAMPLE_RATE_HZ:
                sentence = SENTENCES[(seed + len(parts)) % len(SENTENCES)]
                pcm = client.collect(sentence, task="tts", seed=100 * seed + len(parts)).pcm
                parts += [to_16_khz(pcm.astype(np.float32) / 32_768, OUTPUT_SAMPLE_RATE_HZ), pause]
            clips.append(np.concatenate(parts)[: int(_CLIP_S * INPUT_SAMPLE_RATE_HZ)])
    return clips


def growing(engines: Path, clips: Sequence[Speech]) -> list[Row]:
    """Rows of `benchmarks.growing_speech`, by kind of speech."""
    engine = open_speech_tokenizer(EngineSource(engines, load_manifest(engines)))
    return [{"speech": name, **asdict(growth(engine, each))} for name, each in kinds(clips).items()]


def shown(record: Mapping[str, Any]) -> list[list[str]]:
    """Lines of a table: what, with and without the prefix cache."""

    def both(name: str, of: Any, form: str) -> list[str]:
        values = [of(record[cache]) for cache in ("on", "off")]
        return [name, *("-" if value is None else format(value, form) for value in values)]

    on, lines = record.get("on", {}), list[list[str]]()
    if "turns" in on:
        for n in (1, len(on["turns"]["ttfa_ms"])):
            lines.append(both(f"turn {n}, TTFA ms", lambda r, n=n: r["turns"]["ttfa_ms"][n - 1], ".0f"))
    for index, row in enumerate(on.get("questions", [])):
        name = f"question of {row['seconds']:g} s, end to first sound ms"
        lines.append(both(name, lambda r, i=index: r["questions"][i]["wait_ms"], ".0f"))
    for row in on.get("talkers", []):
        name = f"{row['conversations']} conversations on {row['slots']} slots, later turns found"
        lines.append([name, f"{row['hit_rate']:.0%} (tokens reused: {row['reused_share']:.0%})", "-"])
    if row := record.get("replicas"):
        name = f"turns at either of {row['replicas']} servers: conversations as at one; later turns found"
        found = f"{row['hit_rate']:.0%} (one server: {row['hit_rate_one']:.0%})"
        lines.append([name, f"{row['equal']} of {row['conversations']}; {found}", "-"])
    for row in record.get("growing", []):
        name = f"speech that goes on, {row['speech']}: steps of 4 s that run blocks again; tokens changed"
        lines.append([name, f"{row['run_again']} of {row['steps']}; {row['changed']} of {row['tokens']}", "-"])
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 20.0], help="of a question")
    parser.add_argument("--talkers", type=int, nargs="+", default=[4, 50], help="conversations that take turns")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--speech", type=Path, default=None, help="growing: a recording, or a folder of them")
    parser.add_argument("--out", type=Path, default=None, help="also write the record as JSON here")
    options = parser.parse_args(arguments)
    results = Results(options.out, record_head("benchmarks.conversation", arguments))

    def server(cache: str) -> TritonServer:
        return TritonServer(
            ServerOptions(
                engines=options.engines, grpc_port=0, metrics_port=0, slots=SLOTS, queue=SLOTS, prefix_cache=cache
            )
        )

    for cache in ("on", "off") if {"turns", "questions", "talkers"} & set(options.parts) else ():
        measured: Row = {}
        with server(cache) as running:
            turns(running.grpc_url, 1, 3)  # not counted
            if "turns" in options.parts:
                measured["turns"] = turns(running.grpc_url, options.turns, options.repeats)
            if "questions" in options.parts:
                measured["questions"] = [end_to_sound(running.grpc_url, s, options.repeats) for s in options.seconds]
            if "talkers" in options.parts and cache == "on":
                measured["talkers"] = [talkers(running.grpc_url, n, 3) for n in options.talkers]
            results.save(**{cache: measured})
    if "replicas" in options.parts:
        with server("on") as one, server("on") as other:
            results.save(replicas=replicas([one.grpc_url, other.grpc_url]))
    if "growing" in options.parts:
        if options.speech is None:
            with server("on") as running:
                clips = spoken(running.grpc_url)
        else:
            clips = [clip[: int(_CLIP_S * INPUT_SAMPLE_RATE_HZ)] for clip in load_voices(options.speech)]
        results.save(growing=growing(options.engines, clips))
    console = Console(width=max(120, Console().width))
    console.print(f"{results.fields['command']}\n{results.fields['machine']}, revision {results.fields['revision']}")
    table = Table("", "prefix cache on", "off", title="A conversation")
    for line in shown(results.fields):
        table.add_row(*line)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
