"""Closed-loop callers in processes of their own: each sends its next request when its last stream has ended.

Clients that share a process with the measuring program, or a core with each other, would delay what they measure; how
late their event loops ran is part of the result. Needs the base install only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import active_children, get_context
from pathlib import Path

from loadtest.clock import now_s
from loadtest.playout import Chunk, first_audible, play
from vita_audio.contract.errors import VitaError
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_client import AsyncClient, AsyncStream, Pcm, StatusUpdate, TokensDelta, build_request
from vita_client.request import Request

QUESTION = Path(__file__).parent.parent / "examples" / "question.wav"
#: Read aloud in turn.
SENTENCES = (
    "The train to the airport leaves every twenty minutes from the second platform.",
    "Please close the window before you go, because it may rain in the afternoon.",
    "She wrote a letter to her brother and put it under the blue cup on the table.",
    "We have bread, cheese and apples for breakfast, but the milk is finished.",
)
#: Sampled, so that answers differ; the seed makes them repeatable.
_TEMPERATURE, _TOP_K = 1.0, 50
_TIMEOUT_S = 600.0
_LAG_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Load:
    """What the callers of one process do. Times on `loadtest.clock`.

    Streams sent before `from_s` are warm-up; at `until_s` those that still run are cancelled.
    """

    url: str
    task: str
    mode: str
    streams: int
    first_seed: int
    max_tokens: int
    prebuffer_s: float
    begin_s: float
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One stream. Times in ms since it was sent; None where it never came.

    `outcome`: done, cut (at the end of the row) or failed. `audible_ms`: when the first sample above -60 dB could be
    played. `stages_ms`: the server's own times up to the first sound.
    """

    outcome: str
    warm_up: bool
    first_sample_ms: float | None
    audible_ms: float | None
    audio_s: float
    tokens: int
    real_time_factor: float | None
    underruns: int
    underrun_s: float
    stages_ms: dict[str, float]


@dataclass(slots=True)
class Part:
    """What one process, or all of them together, measured. Tokens and sound of the time that counts, by arrival."""

    streams: list[StreamResult] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    audio_s: float = 0.0
    lags_ms: list[float] = field(default_factory=list)

    def add(self, other: Part) -> None:
        self.streams += other.streams
        self.errors += other.errors
        self.tokens += other.tokens
        self.audio_s += other.audio_s
        self.lags_ms += other.lags_ms


class ClientProcesses:
    """Processes that stay from row to row. Use as a context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
        for _ in range(count):
            self._pool.submit(now_s)  # starts them all while the server loads

    def start(self, load: Load) -> Running:
        """Share the streams of a load among the processes."""
        shares = [load.streams // self._count + (n < load.streams % self._count) for n in range(self._count)]
        loads = [
            replace(load, streams=share, first_seed=load.first_seed + n * 100_000) for n, share in enumerate(shares)
        ]
        return Running([self._pool.submit(run_load, each) for each in loads if each.streams])

    def __enter__(self) -> ClientProcesses:
        return self

    def __exit__(self, *ignored: object) -> None:
        for process in active_children():  # a load under way, which nobody waits for any more, would run to its end
            process.terminate()
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Running:
    """A load under way."""

    futures: Sequence[object]

    def result(self) -> Part:
        """Wait for the end; all processes together."""
        whole = Part()
        for future in self.futures:
            whole.add(future.result())  # type: ignore[attr-defined]
        return whole


def request_for(task: str, mode: str, seed: int, max_tokens: int) -> Request:
    """A spoken question (chat, asr), or a sentence to read aloud or to answer (tts, text)."""
    options = {"mode": mode, "max_tokens": max_tokens, "temperature": _TEMPERATURE, "top_k": _TOP_K, "seed": seed}
    if task in ("tts", "text"):
        return build_request(SENTENCES[seed % len(SENTENCES)], task=task, **options)  # type: ignore[arg-type]
    return build_request(audio=QUESTION, task=task, **options)  # type: ignore[arg-type]


def run_load(load: Load) -> Part:
    """Run the callers of one load in this process."""
    return asyncio.run(_run(load))


async def _run(load: Load) -> Part:
    part, request = Part(), request_for(load.task, load.mode, load.first_seed, load.max_tokens)
    watch = asyncio.create_task(_watch_loop(part.lags_ms))
    async with AsyncClient(load.url) as client:
        await asyncio.gather(*(_caller(client, load, number, request, part) for number in range(load.streams)))
    watch.cancel()
    return part


async def _watch_loop(lags_ms: list[float]) -> None:
    """How much later than asked for the event loop comes back: later than that nothing was read."""
    while True:
        due_s = now_s() + _LAG_POLL_S
        await asyncio.sleep(_LAG_POLL_S)
        lags_ms.append(1e3 * max(0.0, now_s() - due_s))


async def _caller(client: AsyncClient, load: Load, number: int, request: Request, part: Part) -> None:
    # Spread over the warm-up: callers that all begin at once stay in step for a while.
    await asyncio.sleep(max(0.0, load.begin_s - now_s() + (load.from_s - load.begin_s) * number / load.streams))
    turn = 0
    while now_s() < load.until_s:
        seed = load.first_seed + 1_000 * number + turn
        changed = {"SEED": seed} | ({"TEXT": SENTENCES[seed % len(SENTENCES)]} if "TEXT" in request.values else {})
        result = await _one_stream(client, load, Request({**request.values, **changed}), part)
        part.streams.append(result)
        turn += 1
        if result.outcome == "failed":
            await asyncio.sleep(0.2)  # a broken server is not asked ten thousand times


async def _one_stream(client: AsyncClient, load: Load, request: Request, part: Part) -> StreamResult:
    chunks: list[Chunk] = []
    samples, audible, outcome = 0, None, "done"
    stages: Mapping[str, float] = {}
    sent_s, loop = now_s(), asyncio.get_running_loop()
    stream: AsyncStream = client.send(request, timeout_s=_TIMEOUT_S)
    end = loop.call_later(load.until_s - sent_s, stream.cancel)
    try:
        async with stream:
            async for event in stream:
                counts = load.from_s <= now_s() < load.until_s
                if isinstance(event, Pcm):
                    if audible is None and (offset := first_audible(event.samples)) is not None:
                        audible = samples + offset
                    samples += len(event.samples)
                    chunks.append(Chunk(now_s(), len(event.samples)))
                    part.audio_s += counts * event.seconds
                elif isinstance(event, TokensDelta):
                    part.tokens += counts * len(event.ids)
                elif isinstance(event, StatusUpdate) and chunks and not stages:
                    stages = event.status.timings_ms
        outcome = "cut" if stream.cancelled else "done"
    except VitaError as error:
        outcome = "failed"
        part.errors[f"{type(error).__name__}: {error}"[:200]] += 1
    finally:
        end.cancel()
    played = play(chunks, OUTPUT_SAMPLE_RATE_HZ)
    heard = play(chunks, OUTPUT_SAMPLE_RATE_HZ, load.prebuffer_s)
    audio_s = samples / OUTPUT_SAMPLE_RATE_HZ
    return StreamResult(
        outcome=outcome,
        warm_up=sent_s < load.from_s,
        first_sample_ms=(chunks[0].arrived_s - sent_s) * 1e3 if chunks else None,
        audible_ms=None if audible is None else (played.played_at_s(audible) - sent_s) * 1e3,
        audio_s=audio_s,
        tokens=stream.metrics.tokens,
        real_time_factor=(chunks[-1].arrived_s - sent_s) / audio_s if audio_s else None,
        underruns=len(heard.underruns),
        underrun_s=heard.underrun_s,
        stages_ms=dict(stages),
    )
