"""A request, an engine that notes its calls, and a receiver that notes its deltas, for tests of generation."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence

from vita_audio.contract.messages import Delta, GenerationSettings, Status
from vita_audio.engines.interface import BurstRow, ExtendRow, LanguageModelEngine, Sampling
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler

BOOST, VANILLA, TURBO = (1, 10, 4, 10), (8192, 0), (1, 10)


class CountingEngine:
    """Test double for scheduling: token = position, and a record of the rows each call was given."""

    mctp_modules, vocab_size, embedded_size = 10, 100_000, 0

    def __init__(self, slots: int = 3, context: int = 2000, end_at: int = -1) -> None:
        self.slots, self.context, self.end_at = slots, context, end_at
        self.calls: list[list[ExtendRow] | list[BurstRow]] = []
        self.opened: dict[int, Sampling] = {}
        self.fail_on: set[int] = set()

    def begin(self, slot: int, sampling: Sampling, keep: int = 0) -> int:
        assert slot not in self.opened
        self.opened[slot] = sampling
        return 0

    def release(self, slot: int) -> None:
        del self.opened[slot]

    def extend(self, rows: Sequence[ExtendRow]) -> list[int | None]:
        if self.fail_on & {row.slot for row in rows}:
            raise RuntimeError("engine broke")
        assert len({row.slot for row in rows}) == len(rows)
        assert all(row.slot in self.opened and row.tokens for row in rows)
        self.calls.append(list(rows))
        return [None if r.index is None else self._token(r.start + len(r.tokens)) for r in rows]

    def burst(self, rows: Sequence[BurstRow]) -> list[list[int]]:
        self.calls.append(list(rows))
        for row in rows:
            known = row.stop - row.start + (9 if row.index is None else 0)
            assert len(row.tokens) == known
            assert row.stop > row.start
        return [[self._token(r.stop + 1 + k) for k in range(r.commit)] if r.index is not None else [] for r in rows]

    def _token(self, position: int) -> int:
        return 1 if position == self.end_at else 10 + position


def generate(
    engine: LanguageModelEngine, requests: Sequence[GenerationRequest], chunk: int = 64, end: Collection[int] = ()
) -> list[list[int]]:
    """The new tokens of requests that run together."""
    scheduler = Scheduler(engine, end, prefill_chunk=chunk)
    streams = [scheduler.submit(str(i), asked) for i, asked in enumerate(requests)]
    while not scheduler.idle:
        scheduler.step()
    return [stream.tokens[stream.prompt_tokens :] for stream in streams]


def drive(scheduler: Scheduler) -> None:
    for _ in range(100_000):
        if scheduler.idle:
            return
        scheduler.step()
    raise AssertionError("the scheduler does not come to an end")


class Receiver:
    def __init__(self, fail_after: int | None = None) -> None:
        self.deltas: list[Delta] = []
        self.done = threading.Event()
        self.fail_after = fail_after

    def __call__(self, delta: Delta) -> None:
        self.deltas.append(delta)
        if delta.status.final:
            self.done.set()
        if self.fail_after is not None and len(self.deltas) > self.fail_after:
            raise ConnectionError("receiver is gone")

    def wait(self) -> Status:
        assert self.done.wait(20), "no final delta"
        time.sleep(0.01)
        assert [d.status.index for d in self.deltas] == list(range(len(self.deltas)))
        assert [d.status.final for d in self.deltas].count(True) == 1
        return self.deltas[-1].status

    @property
    def tokens(self) -> list[int]:
        return [t for d in self.deltas for t in d.tokens]


def request(
    prompt: list[int],
    pattern: tuple[int, ...],
    max_tokens: int = 40,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.05,
    seed: int = 0,
    read_only: int = 0,
) -> GenerationRequest:
    sampling = temperature, top_k, top_p, repetition_penalty, seed
    settings = GenerationSettings("chat", "test", pattern, max_tokens, *sampling, read_only=read_only)
    return GenerationRequest(prompt, settings)
