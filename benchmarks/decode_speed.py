"""The one definition of tokens/s of a language model: what a scheduler makes while all of its streams run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.paper_setting import FIRST_CHUNK_TOKENS, greedy_request, random_prompts
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.stream import Stream


class Speed(NamedTuple):
    """`tokens` of each stream on average, the mean length of its cache meanwhile, tokens/s of all streams together."""

    tokens: int
    context: float
    per_s: float


def tokens_per_s(
    engine: LanguageModelEngine,
    mode: str,
    tokens: int,
    streams: int,
    limit_s: float = math.inf,
    prefill_chunk: int = 64,
    below: int = 1000,
) -> Speed:
    """Greedy streams, all at once: tokens of all of them after the last one's first token, until they made `tokens`
    each on average or `limit_s` is over, by the seconds that this takes. Prompts do not count.

    Args:
        prefill_chunk: of the scheduler.
        below: prompts are ids below this.
    """
    # While the prompts of the others are read, one a step, a stream can make so many tokens.
    head_start = FIRST_CHUNK_TOKENS * (streams - 1)
    scheduler, running = submit(engine, mode, tokens + head_start, streams, prefill_chunk, below)
    while any(stream.generated == 0 for stream in running):
        scheduler.step()

    def length() -> int:
        return sum(len(stream.tokens) for stream in running)

    before, start = length(), time.perf_counter()
    while (
        length() < before + tokens * streams
        and not any(stream.ended for stream in running)
        and time.perf_counter() - start < limit_s
    ):
        scheduler.step()
    after, took = length(), time.perf_counter() - start
    end(scheduler, running)
    return Speed((after - before) // streams, (before + after) / 2 / streams, (after - before) / took)


def submit(
    engine: LanguageModelEngine, mode: str, tokens: int, streams: int, prefill_chunk: int, below: int
) -> tuple[Scheduler, list[Stream]]:
    """A scheduler with as many streams on random prompts."""
    scheduler = Scheduler(engine, end_tokens=(), prefill_chunk=prefill_chunk)
    requests = [greedy_request(prompt, NAMED_MODES[mode], tokens) for prompt in random_prompts(streams, below)]
    return scheduler, [scheduler.submit(str(number), request) for number, request in enumerate(requests)]


def end(scheduler: Scheduler, streams: Sequence[Stream]) -> None:
    """Free the slots of streams that have not come to their end."""
    for stream in streams:
        if not stream.ended:
            scheduler.end(stream, "cancelled", "measured")
